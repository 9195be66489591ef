"""The int4 layer computes what the dense one does, to bfloat16's precision, and changes over where it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.unit.model.test_gptq import make
from workers.model import kernel_choice
from workers.model.gptq import DenseGPTQLinear, GPTQTensors
from workers.model.gptq_int4 import Int4Linear, is_possible


def tensors_of(group_size: int, *, act_order: bool, bits: int = 4, bias: bool = False) -> GPTQTensors:
    fields, _ = make(bits, group_size, act_order=act_order, is_v1=True, bias=bias)
    return GPTQTensors.read(**fields)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_integers_compute_what_the_dense_layer_does(rows: int, group_size: int, act_order: bool) -> None:
    tensors = tensors_of(group_size, act_order=act_order, bias=True)
    dense = tensors.dequantise()
    layer = Int4Linear(tensors, few_rows=0, dense=None, dtype=torch.float32)
    x = torch.randn(2, rows, dense.shape[1])
    expected = torch.nn.functional.linear(x, dense, tensors.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0.012 * float(expected.abs().max()))
    assert layer(x).dtype == torch.float32


def test_many_rows_go_through_the_dense_copy_and_are_exact() -> None:
    tensors = tensors_of(32, act_order=True)
    dense = DenseGPTQLinear.of(tensors, dtype=torch.float32, device=torch.device("cpu"))
    layer = Int4Linear(tensors, few_rows=4, dense=dense, dtype=torch.float32)
    x = torch.randn(5, dense.in_features)
    assert torch.equal(layer(x), dense(x))
    assert not torch.equal(layer(x[:4]), dense(x[:4]))


def test_what_the_kernel_does_not_take_is_said() -> None:
    assert is_possible(tensors_of(32, act_order=True))
    assert not is_possible(tensors_of(32, act_order=False, bits=8))
    uneven = tensors_of(32, act_order=False)
    uneven.g_idx[0] = 1
    assert not is_possible(uneven)
    with pytest.raises(ValueError, match="int4"):
        Int4Linear(uneven, few_rows=1, dense=None, dtype=torch.float32)


def test_choice_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tensors = tensors_of(64, act_order=False)
    dense = DenseGPTQLinear.of(tensors, dtype=torch.float32, device=torch.device("cpu"))
    rows = kernel_choice.few_rows(tensors, dense)
    assert rows in (0, *kernel_choice.ROWS)
    (file,) = tmp_path.rglob("*.json")
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: 7}))
    assert kernel_choice.few_rows(tensors, dense) == 7
    file.write_text("no json")
    assert kernel_choice.few_rows(tensors, dense) in (0, *kernel_choice.ROWS)
