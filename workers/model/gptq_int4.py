"""A quantised layer for the CPU that multiplies with its 4-bit integers when few rows go through it.

torch's int4 kernel reads an eighth of what a dense float32 layer reads, which is what a product of few rows waits for.
It is fast with bfloat16 inputs alone, so its results differ from the dense layer's by about 0.3 % of their size; who
needs every token equal whatever the batch takes the dense backend. With many rows arithmetic counts, and the dense copy
is used where there is one.

Knows one layer. Which layers take it, and up to how many rows, `kernel_choice` measures.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from workers.model.gptq import GPTQTensors, unpack

GROUPS: Final = (256, 128, 64, 32)  # inputs that share a scale, as the kernel takes them
OUTPUTS_STEP: Final = 16
_MIDDLE = 8  # the kernel's integers stand for -8..7


# I inputs, O outputs, N rows
class Int4Linear(nn.Module):
    """Up to ``few_rows`` rows by integers, more by the layer ``dense``, or all by integers when there is none."""

    def __init__(self, tensors: GPTQTensors, *, few_rows: int, dense: nn.Module | None, dtype: torch.dtype) -> None:
        """Raises ValueError for a layer that `is_possible` refuses."""
        super().__init__()
        group = _group(tensors)
        if group is None:
            raise ValueError("this layer's bits, groups or outputs are not what the int4 kernel takes")
        self.in_features, self.out_features = tensors.g_idx.numel(), tensors.scales.shape[1]
        self.few_rows, self._group = few_rows, group
        order = torch.argsort(tensors.g_idx, stable=True)  # (I,) act-order: inputs of one group side by side
        is_ordered = bool((order == torch.arange(self.in_features)).all())
        self.order = None if is_ordered else nn.Buffer(order, persistent=False)
        stored = unpack(tensors.qweight, 4, dim=0)[order]  # (I, O)
        self.integers = nn.Buffer(
            torch.ops.aten._convert_weight_to_int4pack_for_cpu(stored.t().contiguous(), 1), persistent=False
        )
        repeats = self.in_features // group // tensors.scales.shape[0]
        scales = tensors.scales.float().repeat_interleave(repeats, dim=0)  # (I / group, O)
        zeros = unpack(tensors.qzeros, 4, dim=1).float().repeat_interleave(repeats, dim=0)
        both = torch.stack([scales, (_MIDDLE - zeros) * scales], dim=-1)  # (I / group, O, 2)
        self.scales_and_zeros = nn.Buffer(both.to(torch.bfloat16).contiguous(), persistent=False)
        self.dense = dense
        self.bias = None if tensors.bias is None else nn.Buffer(tensors.bias.to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the type of ``x``."""
        rows = x.reshape(-1, self.in_features)  # (N, I)
        if self.dense is not None and rows.shape[0] > self.few_rows:
            return self.dense(x)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.to(torch.bfloat16), self.integers, self._group, self.scales_and_zeros
        ).to(x.dtype)  # (N, O)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)


def is_possible(tensors: GPTQTensors) -> bool:
    """Say whether the kernel takes this layer."""
    return _group(tensors) is not None


def _group(tensors: GPTQTensors) -> int | None:
    """Return the kernel's group size for this layer, or None."""
    inputs, groups = tensors.g_idx.numel(), tensors.scales.shape[0]
    if tensors.bits != 4 or inputs % groups or tensors.scales.shape[1] % OUTPUTS_STEP:
        return None
    size = inputs // groups
    # Act-order may, in principle, leave groups of unequal size.
    if bool((torch.bincount(tensors.g_idx, minlength=groups) != size).any()):
        return None
    return next((group for group in GROUPS if size % group == 0), None)
