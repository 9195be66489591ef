"""The layer that multiplies by its integers on a GPU computes what the dense one does, however it is launched.

Interpreted on the CPU where no GPU is (conftest.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from workers.model.gptq import GPTQTensors, pack

pytestmark = pytest.mark.needs("triton")
DEVICE = torch.device("cuda" if Path("/dev/nvidiactl").exists() and torch.cuda.is_available() else "cpu")
INPUTS, OUTPUTS = 512, 72
# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
HALVES = [torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]


def make(
    group_size: int,
    *,
    inputs: int = INPUTS,
    outputs: int = OUTPUTS,
    is_v1: bool = True,
    is_symmetric: bool = False,
    act_order: bool = False,
    bias: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    bits: int = 4,
    seed: int = 1,
) -> GPTQTensors:
    torch.manual_seed(seed)
    size = inputs if group_size == -1 else group_size
    groups = -(-inputs // size)
    zeros = torch.full((groups, outputs), 8) if is_symmetric else torch.randint(0, 16, (groups, outputs))
    qzeros = pack(zeros, bits, dim=1) - (sum(1 << shift for shift in range(0, 32, bits)) if is_v1 else 0)
    g_idx = torch.arange(inputs) // size
    if act_order:
        torch.manual_seed(7)  # The same for layers that are joined.
        g_idx = g_idx[torch.randperm(inputs)]
    return GPTQTensors.read(
        qweight=pack(torch.randint(0, 16, (inputs, outputs)), bits, dim=0), qzeros=qzeros,
        scales=(torch.rand(groups, outputs) + 0.1).to(scale_dtype), g_idx=g_idx,
        bias=torch.randn(outputs) if bias else None, in_features=inputs, out_features=outputs, bits=bits,
        group_size=group_size, is_v1=is_v1,
    )  # fmt: skip


def layer_of(tensors: GPTQTensors, dtype: torch.dtype = torch.float32):
    from workers.model.gptq_triton import TritonInt4Linear

    return TritonInt4Linear(tensors, dtype=dtype, device=DEVICE)


def config_of(kind: str = "tile", **fields: int):
    from workers.model.kernels.w4a16 import Config

    return Config(kind=kind, **fields)


def random_rows(rows: int, inputs: int = INPUTS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, inputs).to(DEVICE, dtype)


def reference(tensors: GPTQTensors, x: torch.Tensor) -> torch.Tensor:
    bias = None if tensors.bias is None else tensors.bias.double()
    return F.linear(x.cpu().double(), tensors.dequantise().double(), bias)


def assert_near(y: torch.Tensor, expected: torch.Tensor, part: float) -> None:
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=part * float(expected.abs().max()))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("is_v1", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_layer_computes_what_the_dense_one_does(group_size: int, is_v1: bool, act_order: bool) -> None:
    tensors = make(group_size, is_v1=is_v1, act_order=act_order, is_symmetric=is_v1 and act_order, bias=act_order)
    layer = layer_of(tensors)
    x = random_rows(3).view(1, 3, INPUTS)
    y = layer(x)
    assert (y.shape, y.dtype) == ((1, 3, OUTPUTS), torch.float32)
    assert_near(y, reference(tensors, x), 1e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, 3, 17, 70])
def test_any_number_of_rows_in_16_bits(rows: int, dtype: torch.dtype) -> None:
    tensors = make(128, bias=True, act_order=True)
    x = random_rows(rows, dtype=dtype)
    y = layer_of(tensors, dtype)(x)
    assert y.dtype == dtype
    assert_near(y, reference(tensors, x), 0.006)


@pytest.mark.parametrize(("kind", "rows"), [("tile", 1), ("tile", 16), ("vector", 1)])
@pytest.mark.parametrize("splits", [1, 2, 3])
def test_split_inputs_sum_to_the_same(splits: int, kind: str, rows: int) -> None:
    tensors = make(64, inputs=768, bias=True)
    layer = layer_of(tensors)
    x = random_rows(rows, 768)
    config = config_of(kind, rows=16, outputs=32, splits=splits)
    # Twice: the first product must leave its counters as it found them.
    for _ in range(2):
        assert_near(layer.product(x, config), reference(tensors, x), 1e-5)


@pytest.mark.parametrize("kind", ["tile", "vector"])
@pytest.mark.parametrize("inputs", [96, 352])
def test_inputs_that_fill_no_block(inputs: int, kind: str) -> None:
    tensors = make(32, inputs=inputs, outputs=24)
    x = random_rows(2, inputs)
    # What follows the rows in memory must not count.
    assert_near(layer_of(tensors).product(x, config_of(kind, rows=8, outputs=16)), reference(tensors, x), 1e-5)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_row_gets_the_same_bits_alone_and_among_others(splits: int) -> None:
    layer = layer_of(make(128), HALVES[-1])
    x = random_rows(21, dtype=HALVES[-1])
    config = config_of(rows=16, outputs=64, splits=splits)
    together = layer.product(x, config)
    for row in (0, 15, 16, 20):
        assert torch.equal(layer.product(x[row : row + 1], config)[0], together[row])
    assert torch.equal(layer.product(x.flip(0), config), together.flip(0))


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_unpacked_weights_are_the_dense_layers_to_the_bit(scale_dtype: torch.dtype) -> None:
    tensors = make(64, scale_dtype=scale_dtype, inputs=352 - 32)
    for dtype in (torch.float32, *HALVES):
        assert torch.equal(layer_of(tensors).dense(dtype).cpu(), tensors.dequantise(dtype))


def test_more_rows_than_the_kernels_are_for_go_through_the_dense_product() -> None:
    tensors = make(128, act_order=True, bias=True)
    x = random_rows(300)
    assert_near(layer_of(tensors)(x), reference(tensors, x), 1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_joined_layers_equal_the_layers(act_order: bool, bias: bool) -> None:
    from workers.model.gptq_triton import join

    layers = [
        layer_of(make(128, outputs=outputs, act_order=act_order, bias=bias, seed=outputs), HALVES[-1])
        for outputs in (64, 16, 16)
    ]
    joined = join(layers)
    assert joined is not None
    x = random_rows(3, dtype=HALVES[-1])
    config = config_of(rows=8, outputs=32, splits=2)
    inputs = x if joined.order is None else x.index_select(1, joined.order)
    expected = torch.cat([layer.product(inputs, config) for layer in layers], -1)
    assert torch.equal(joined.product(inputs, config), expected)
    assert joined(x).shape == (3, 96)


def test_layers_that_differ_are_not_joined() -> None:
    from workers.model.gptq_triton import join

    plain = layer_of(make(128))
    for other in (make(64), make(128, act_order=True), make(128, bias=True), make(128, inputs=256)):
        assert join([plain, layer_of(other)]) is None


def test_what_the_kernels_do_not_take_is_said() -> None:
    from workers.model.gptq_triton import is_possible

    assert is_possible(make(32, act_order=True))
    assert is_possible(make(256))
    assert not is_possible(make(64, inputs=320 - 32))  # a short last group
    assert not is_possible(make(96, inputs=96 * 4))
    uneven = make(32)
    uneven.g_idx[0] = 1
    assert not is_possible(uneven)
    with pytest.raises(ValueError, match="kernels"):
        layer_of(uneven)


@pytest.mark.parametrize("shape", [(3584, 4608), (3584, 3584), (3584, 37888), (18944, 3584), (96, 24)])
def test_every_configuration_is_one_the_kernels_take(shape: tuple[int, int]) -> None:
    from workers.model import triton_choice
    from workers.model.kernels.w4a16 import BLOCK, MAX_TILES

    for bucket in triton_choice.ROWS:
        found = triton_choice.candidates(bucket, *shape)
        assert found[0] == triton_choice.default(bucket, *shape)
        assert len(found) <= 10
        for config in found:
            assert 1 <= config.splits <= -(-shape[0] // BLOCK)
            if config.splits > 1:
                assert -(-bucket // config.rows) * -(-shape[1] // config.outputs) <= MAX_TILES


@pytest.mark.needs("cuda")
def test_choice_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.model import triton_choice, vendor_int4

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(vendor_int4, "version", lambda: None)
    monkeypatch.setattr(triton_choice, "_chosen", {})
    monkeypatch.setattr(triton_choice, "ROWS", (1, 16))
    layer = layer_of(make(128), torch.bfloat16)
    triton_choice.tune([layer])
    chosen = dict(triton_choice._chosen)
    (file,) = tmp_path.rglob("*.json")
    assert len(json.loads(file.read_text())) == 2
    monkeypatch.setattr(triton_choice, "_measure", None)
    triton_choice._chosen.clear()
    triton_choice.tune([layer])
    assert triton_choice._chosen == chosen
