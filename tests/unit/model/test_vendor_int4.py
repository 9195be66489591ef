"""A vendor's kernels compute int4 products where they are faster and right, and break nothing where they are neither.

The package itself runs on a GPU alone. What takes and what refuses its answers is tested with a stand-in that has its
entry points; how its weights lie, against its own reading of GPTQ tensors.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.unit.model.test_gptq_triton import DEVICE, HALVES, assert_near, layer_of, make, random_rows, reference
from workers.model.gptq import GPTQTensors, unpack

pytestmark = pytest.mark.needs("triton")
DTYPE = HALVES[-1]
INPUTS, OUTPUTS = 256, 64
PARTS = ("dtypes", "ops", "schema", "transform", "tune")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Import the package anew in each test."""
    from workers.model import vendor_int4

    vendor_int4.load.cache_clear()
    yield
    vendor_int4.load.cache_clear()


class Vendor:
    """A stand-in for the package: right, captured and twice as fast unless a test says otherwise."""

    def __init__(self) -> None:
        self.version = "1.0"
        self.speed = 2.0  # times ours
        self.spoil: Callable[[torch.Tensor], torch.Tensor] = lambda y: y
        self.can_capture = True
        self.num_products = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = ModuleType("humming")
        package.__version__ = self.version  # type: ignore[attr-defined]
        for name in PARTS:
            part = ModuleType(f"humming.{name}")
            setattr(package, name, part)
            monkeypatch.setitem(sys.modules, part.__name__, part)
        monkeypatch.setitem(sys.modules, "humming", package)
        package.dtypes.DataType = SimpleNamespace(from_str=str, from_torch_dtype=str)
        package.schema.HummingWeightSchema = SimpleNamespace
        package.transform.prepare_and_transform_humming_tensors = self._transform
        package.tune.get_heuristics_config = lambda config, shape_m, device: {"rows": shape_m}
        package.ops.humming_gemm = self._product

    def _transform(self, tensors, *, shape_n, shape_k, weight_schema, has_bias, torch_dtype, device):
        assert weight_schema.has_zero_point == ("zero_point" in tensors)
        assert has_bias == ("bias" in tensors)
        assert tensors["weight_scale"].dtype == torch_dtype
        return SimpleNamespace(to_str=lambda: f"{shape_n}x{shape_k}"), tensors

    def _product(self, *, layer_config, tuning_config, inputs, locks, **tensors):
        self.num_products += 1
        weight = dequantise(tensors)
        assert layer_config == f"{weight.shape[0]}x{weight.shape[1]}"
        assert inputs.shape[0] <= json.loads(tuning_config)["rows"]
        y = inputs.float() @ weight.t()
        if "bias" in tensors:
            y = y + tensors["bias"].float()
        return self.spoil(y.to(inputs.dtype))


def dequantise(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return (O, I) float32 of what `stored` describes."""
    weight = unpack(tensors["weight"], 4, dim=1)
    scales = tensors["weight_scale"].float()
    zeros = unpack(tensors["zero_point"], 4, dim=0) if "zero_point" in tensors else torch.full_like(scales, 8).int()
    size = weight.shape[1] // scales.shape[1]
    return (weight - zeros.repeat_interleave(size, 1)).float() * scales.repeat_interleave(size, 1)


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vendor:
    """Tune as on a GPU, with the stand-in installed: times are said, and a graph is a call."""
    from workers.model import triton_choice, triton_timing

    found = Vendor()
    product = triton_timing.product

    def replayed(layer, x, config):
        if not found.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        return product(layer, x, config)

    def seconds(call, _flush) -> float:
        return 1.0 / found.speed if call.args[2].kind == "vendor" else 1.0

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(triton_timing, "make_flush", lambda device: torch.zeros(1, device=device))
    monkeypatch.setattr(triton_timing, "_seconds", seconds)
    monkeypatch.setattr(triton_timing, "_replayed", replayed)
    monkeypatch.setattr(triton_choice, "ROWS", (1, 8))
    monkeypatch.setattr(triton_choice, "candidates", lambda *shape: [triton_choice.default(*shape)])
    monkeypatch.setattr(triton_choice, "_chosen", {})
    monkeypatch.setattr(triton_choice, "_vendors", {})
    found.install(monkeypatch)
    return found


def some(**how: object) -> GPTQTensors:
    return make(64, inputs=INPUTS, outputs=OUTPUTS, **how)  # type: ignore[arg-type]


def tuned(*tensors: GPTQTensors):
    from workers.model import triton_choice

    layers = [layer_of(each, DTYPE) for each in tensors]
    triton_choice.tune(layers, DTYPE)
    return layers


def assert_ours(vendor: Vendor, *layers, tensors: GPTQTensors) -> None:
    """The layers compute right, by our kernels."""
    vendor.num_products = 0
    x = random_rows(3, INPUTS, DTYPE)
    for layer in layers:
        assert layer.vendor is None
        assert_near(layer(x), reference(tensors, x), 0.006)
    assert vendor.num_products == 0


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("is_symmetric", "is_v1"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize(("group_size", "act_order"), [(32, True), (128, False), (256, False), (-1, False)])
def test_weights_in_the_packages_layout_are_ours(
    group_size: int, act_order: bool, is_symmetric: bool, is_v1: bool, scale_dtype: torch.dtype
) -> None:
    from workers.model.vendor_int4 import stored

    tensors = make(group_size, is_symmetric=is_symmetric, is_v1=is_v1, act_order=act_order, scale_dtype=scale_dtype)
    layer = layer_of(tensors)
    found = stored(
        layer.qweight, layer.scaling, layer.bias, inputs=layer.in_features, group=layer.group,
        is_bfloat16_scale=layer.is_bfloat16_scale, dtype=scale_dtype,
    )  # fmt: skip
    assert ("zero_point" in found) != is_symmetric
    weight = tensors.dequantise().to(DEVICE)
    assert torch.equal(dequantise(found), weight if layer.order is None else weight[:, layer.order])


def test_inputs_that_fill_no_block_of_ours() -> None:
    from workers.model.vendor_int4 import stored

    tensors = make(32, inputs=352, outputs=64)
    layer = layer_of(tensors)
    found = stored(
        layer.qweight, layer.scaling, None, inputs=352, group=32, is_bfloat16_scale=False, dtype=torch.float16
    )
    assert torch.equal(dequantise(found).cpu(), tensors.dequantise())


@pytest.mark.needs("humming")
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128])
def test_package_reads_gptq_tensors_into_the_same(group_size: int, is_symmetric: bool) -> None:
    from workers.model.vendor_int4 import load, stored

    package = load()
    assert package is not None
    dtypes, schemas = package.dtypes, package.schema
    tensors = make(group_size, is_symmetric=is_symmetric, bias=True)
    layer = layer_of(tensors, torch.float16)
    found = stored(
        layer.qweight, layer.scaling, layer.bias, inputs=layer.in_features, group=layer.group, is_bfloat16_scale=False,
        dtype=torch.float16,
    )  # fmt: skip
    theirs = {"qweight": tensors.qweight, "qzeros": tensors.qzeros, "scales": tensors.scales, "bias": tensors.bias}
    gptq = schemas.GPTQWeightSchema(bits=4, group_size=group_size, sym=is_symmetric)
    # The public method makes a GPU the current one first.
    schema, expected = gptq._convert_humming(theirs, [layer.out_features], [layer.in_features], torch.float16)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.cpu(), expected[name].to(tensor.dtype)), name
    ours = schemas.HummingWeightSchema(
        b_dtype=dtypes.DataType.from_str("uint4"), bs_dtype=dtypes.DataType.from_torch_dtype(torch.float16),
        weight_scale_group_size=group_size, has_zero_point=not is_symmetric,
    )  # fmt: skip
    assert schema == ours
    ours.validate_tensors(
        found, shape_n=layer.out_features, shape_k=layer.in_features, param_dtype=torch.float16, has_bias=True
    )


def test_without_the_package_ours_are_chosen_and_one_line_says_so(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from workers.model import triton_choice

    caplog.set_level(logging.INFO, "workers.model.vendor_int4")
    monkeypatch.setitem(sys.modules, "humming", None)
    for _ in range(2):
        (layer,) = tuned(some())
    assert [record.levelname for record in caplog.records if "humming" in record.message] == ["INFO"]
    assert all(config.kind != "vendor" for config in triton_choice._chosen.values())
    assert_ours(vendor, layer, tensors=some())


@pytest.mark.parametrize("failure", ["OSError('no libcuda.so.1')", "ModuleNotFoundError('cuda', name='cuda')"])
def test_package_that_fails_to_import_is_as_none(
    vendor: Vendor, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("humming", *(f"humming.{part}" for part in PARTS)):
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "humming").mkdir()
    (tmp_path / "humming" / "__init__.py").write_text(f"raise {failure}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        (layer,) = tuned(some())
    assert [record.levelname for record in caplog.records if "humming" in record.message] == ["WARNING"]
    assert_ours(vendor, layer, tensors=some())


def fail(_y: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image")


def lose_a_number(y: torch.Tensor) -> torch.Tensor:
    y[0, 0] = float("nan")
    return y


@pytest.mark.parametrize("spoil", [fail, lose_a_number, lambda y: y * 1.1, lambda y: y.roll(1, dims=1)])
def test_wrong_answers_are_never_chosen(vendor: Vendor, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    from workers.model import triton_choice

    vendor.spoil = spoil
    (layer,) = tuned(some())
    assert vendor.num_products > 0
    assert triton_choice._vendors == {}
    assert_ours(vendor, layer, tensors=some())


def test_what_graphs_cannot_hold_is_left_out(vendor: Vendor) -> None:
    vendor.can_capture = False
    (layer,) = tuned(some())
    assert_ours(vendor, layer, tensors=some())


def test_small_gain_is_not_worth_a_second_copy_of_the_weights(vendor: Vendor) -> None:
    vendor.speed = 1.03
    (layer,) = tuned(some())
    assert_ours(vendor, layer, tensors=some())


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_faster_vendor_computes_decodes_and_ours_many_rows(vendor: Vendor, is_symmetric: bool) -> None:
    tensors = some(is_symmetric=is_symmetric, bias=True, act_order=True)
    (layer,) = tuned(tensors)
    for rows, products in ((1, 1), (5, 1), (300, 0)):
        vendor.num_products = 0
        x = random_rows(rows, INPUTS, DTYPE)
        assert_near(layer(x), reference(tensors, x), 0.006)
        assert vendor.num_products == products
    # In another type than it was made for, the vendor's copy is of no use.
    vendor.num_products = 0
    layer(random_rows(1, INPUTS))
    assert vendor.num_products == 0


def test_choice_is_kept_until_the_package_changes(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.model import triton_choice, vendor_int4

    tuned(some())
    monkeypatch.setattr(triton_choice, "_measure", None)
    kept, measure = triton_choice._vendors.copy(), triton_choice._buckets_won
    monkeypatch.setattr(triton_choice, "_buckets_won", None)
    (layer,) = tuned(some())
    assert triton_choice._vendors == kept == {(INPUTS, OUTPUTS, 64): frozenset({1, 8})}
    assert layer.vendor is not None
    vendor.version, vendor.speed = "2.0", 0.5
    vendor.install(monkeypatch)
    vendor_int4.load.cache_clear()
    monkeypatch.setattr(triton_choice, "_buckets_won", measure)
    (layer,) = tuned(some())
    assert_ours(vendor, layer, tensors=some())


def test_failure_is_not_kept(vendor: Vendor) -> None:
    vendor.spoil = fail
    tuned(some())
    vendor.spoil = lambda y: y
    (layer,) = tuned(some())
    assert layer.vendor is not None


def test_layer_for_which_the_vendor_is_wrong_keeps_ours(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = some(seed=1), some(seed=2)
    transform = vendor._transform

    def spoil_the_other(tensors, **how):
        # Only the first is measured.
        if torch.equal(tensors["weight_scale"].cpu().float(), bad.scales.t().to(DTYPE).float()):
            tensors["weight_scale"] = tensors["weight_scale"] * 2
        return transform(tensors, **how)

    monkeypatch.setattr(sys.modules["humming.transform"], "prepare_and_transform_humming_tensors", spoil_the_other)
    first, second = tuned(good, bad)
    assert first.vendor is not None
    assert_ours(vendor, second, tensors=bad)


def test_joined_layers_get_the_vendors_kernels_as_one(vendor: Vendor) -> None:
    from workers.model import triton_choice
    from workers.model.gptq_triton import join

    parts = [some(seed=seed) for seed in (1, 2)]
    joined = join([layer_of(part, DTYPE) for part in parts])
    assert joined is not None
    triton_choice.tune([joined], DTYPE)
    assert joined.vendor is not None
    vendor.num_products = 0
    x = random_rows(2, INPUTS, DTYPE)
    assert_near(joined(x), torch.cat([reference(part, x) for part in parts], 1), 0.006)
    assert vendor.num_products == 1


@pytest.mark.needs("cuda", "humming")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "group_size"), [(3584, 4608, 128), (1024, 256, 64), (512, 1024, -1)])
def test_vendors_product_is_the_dense_one_in_a_graph_too(
    inputs: int, outputs: int, group_size: int, is_symmetric: bool, dtype: torch.dtype
) -> None:
    from workers.model import triton_timing
    from workers.model.kernels.w4a16 import Config

    tensors = make(
        group_size, inputs=inputs, outputs=outputs, is_symmetric=is_symmetric, bias=True, act_order=group_size == 64
    )
    layer = layer_of(tensors, dtype)
    layer.vendor = layer.for_vendor(dtype)
    for bucket in (1, 8, 32, 256):
        for rows in (bucket, bucket // 2 + 1):
            x = random_rows(rows, inputs, dtype)
            ordered = x if layer.order is None else x.index_select(1, layer.order)
            config = Config(kind="vendor", rows=bucket)
            assert_near(layer.product(ordered, config), reference(tensors, x), 0.01)
            assert_near(triton_timing._replayed(layer, ordered, config), reference(tensors, x), 0.01)
