"""Quantised layers compute what their integers say."""

from __future__ import annotations

import pytest
import torch

from workers.model.gptq import BadQuantisation, DenseGPTQLinear, GPTQTensors, PackedGPTQLinear, pack, unpack

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 128, 48


def make(bits: int, group_size: int, *, act_order: bool, is_v1: bool, bias: bool = False) -> tuple[dict, torch.Tensor]:
    """Return a layer's tensors, and its weight (outputs, inputs) computed number by number."""
    torch.manual_seed(bits * 1000 + group_size)
    groups = 1 if group_size == -1 else INPUTS // group_size
    size = INPUTS // groups
    stored = torch.randint(0, 1 << bits, (INPUTS, OUTPUTS))
    zeros = torch.randint(0, 1 << bits, (groups, OUTPUTS))
    zeros[0, :9] = 0  # v1 stores it less one, which borrows from its neighbour
    scales = torch.rand(groups, OUTPUTS).half() + 0.01
    g_idx = torch.arange(INPUTS) // size
    if act_order:
        g_idx = g_idx[torch.randperm(INPUTS)]
    weight = torch.empty(OUTPUTS, INPUTS)
    for i in range(INPUTS):
        group = int(g_idx[i])
        for o in range(OUTPUTS):
            weight[o, i] = float(scales[group, o]) * (int(stored[i, o]) - int(zeros[group, o]))
    qzeros = pack(zeros, bits, dim=1)
    if is_v1:
        qzeros = qzeros - sum(1 << shift for shift in range(0, 32, bits))
    tensors = {
        "qweight": pack(stored, bits, dim=0), "qzeros": qzeros, "scales": scales, "g_idx": g_idx.int(),
        "bias": torch.randn(OUTPUTS) if bias else None, "in_features": INPUTS, "out_features": OUTPUTS,
        "bits": bits, "group_size": group_size, "is_v1": is_v1,
    }  # fmt: skip
    return tensors, weight


@pytest.mark.parametrize("is_v1", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (4, 128), (4, -1), (8, 32), (8, -1)])
def test_both_backends_equal_the_weight_computed_number_by_number(
    bits: int, group_size: int, act_order: bool, is_v1: bool
) -> None:
    fields, weight = make(bits, group_size, act_order=act_order, is_v1=is_v1, bias=group_size == 32)
    tensors = GPTQTensors.read(**fields)
    torch.testing.assert_close(tensors.dequantise(), weight, rtol=1e-6, atol=0)
    x = torch.randn(5, INPUTS)
    expected = torch.nn.functional.linear(x, weight, fields["bias"])
    for layer in (
        DenseGPTQLinear.of(tensors, dtype=torch.float32, device=CPU),
        PackedGPTQLinear(tensors, dtype=torch.float32, device=CPU),
    ):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_layer_without_g_idx_takes_groups_in_order() -> None:
    fields, weight = make(4, 32, act_order=False, is_v1=False)
    torch.testing.assert_close(GPTQTensors.read(**fields | {"g_idx": None}).dequantise(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_unpack_undoes_pack(bits: int, dim: int) -> None:
    integers = torch.randint(0, 1 << bits, (64, 32))
    assert torch.equal(unpack(pack(integers, bits, dim=dim), bits, dim=dim), integers.int())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 3}, "4 and 8"),
        ({"bits": 8}, "shape"),
        ({"group_size": 64}, "shape"),
        ({"group_size": 0}, "group size"),
        ({"in_features": 120}, "shape"),
        ({"in_features": 5}, "packed"),
        ({"scales": torch.ones(1, 1)}, "scales"),
        ({"g_idx": torch.full((INPUTS,), 9)}, "outside"),
        ({"g_idx": torch.zeros(3)}, "g_idx"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"qweight": torch.zeros(INPUTS // 8, OUTPUTS)}, "int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict, words: str) -> None:
    fields, _ = make(4, 32, act_order=False, is_v1=True)
    with pytest.raises(BadQuantisation, match=words):
        GPTQTensors.read(**fields | change)
