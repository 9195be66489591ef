"""A quantised layer for CUDA that multiplies with its 4-bit integers.

Few rows go through Triton kernels that read a quarter of what a bfloat16 layer reads; many rows unpack the layer first
and use the dense product, whose arithmetic then counts. Which kernel suits which number of rows, `triton_choice` knows.
The dense weights are kept nowhere. A layer may get a vendor's kernels beside ours (`vendor_int4`), with a copy of the
integers in their layout; that too is `triton_choice`'s to decide.

Knows one layer, and how several layers of one input become one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.model import triton_choice
from workers.model.gptq import GPTQTensors, unpack
from workers.model.kernels import w4a16
from workers.model.vendor_int4 import VendorInt4

_INPUTS_STEP = 32


# I inputs, O outputs, G groups, B blocks of 256 inputs, N rows
class TritonInt4Linear(nn.Module):
    """A layer by its integers. Behaves as the Linear it replaces; capturable in a CUDA graph."""

    def __init__(self, tensors: GPTQTensors, *, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ValueError for a layer that `is_possible` refuses."""
        super().__init__()
        group = _group(tensors)
        if group is None:
            raise ValueError("this layer's bits, groups or inputs are not what the kernels take")
        self.in_features, self.out_features = tensors.g_idx.numel(), tensors.scales.shape[1]
        self.group = group
        self.is_bfloat16_scale = tensors.scales.dtype == torch.bfloat16
        order = torch.argsort(tensors.g_idx, stable=True)  # (I,) act-order: inputs of one group side by side
        is_ordered = bool((order == torch.arange(self.in_features)).all())
        self.order = None if is_ordered else nn.Buffer(order.to(device), persistent=False)
        stored = unpack(tensors.qweight.to(device), 4, dim=0)  # (I, O)
        if self.order is not None:
            stored = stored[self.order]
        zeros = unpack(tensors.qzeros, 4, dim=1)  # (G, O)
        scales = tensors.scales if self.is_bfloat16_scale else tensors.scales.to(torch.float16)
        bits = scales.contiguous().view(torch.int16).int() & 0xFFFF
        scaling = bits | (zeros << 16)  # (G, O)
        whole = -(-self.in_features // w4a16.BLOCK) * w4a16.BLOCK
        scaling = F.pad(scaling, (0, 0, 0, -(-whole // group) - scaling.shape[0]))  # groups that fill the last block
        self.qweight = nn.Buffer(_packed(stored), persistent=False)  # (B, O, 32) int32
        self.scaling = nn.Buffer(scaling.to(device).contiguous(), persistent=False)  # (G, O) int32
        self.bias = None if tensors.bias is None else nn.Buffer(tensors.bias.to(device, dtype), persistent=False)
        self.vendor: VendorInt4 | None = None
        # Made here, since what is first made while a CUDA graph is captured belongs to the graph.
        triton_choice.counters(self.qweight.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the type of ``x``."""
        rows = x.reshape(-1, self.in_features)  # (N, I)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        has_vendor = self.vendor is not None and self.vendor.dtype == x.dtype
        config = triton_choice.choose(
            rows.shape[0], self.in_features, self.out_features, self.group, has_vendor=has_vendor
        )
        if config.kind == "dense":
            y = F.linear(rows, self.dense(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        else:
            y = self.product(rows.contiguous(), config)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, rows: Tensor, config: w4a16.Config) -> Tensor:
        """(N, I), inputs in the kernel's order, -> (N, O) by a kernel."""
        if config.kind == "vendor":
            assert self.vendor is not None
            return self.vendor.product(rows, config.rows)
        return w4a16.matmul(
            rows, self.qweight, self.scaling, self.bias, triton_choice.counters(rows.device), group=self.group,
            is_bfloat16_scale=self.is_bfloat16_scale, config=config,
        )  # fmt: skip

    def for_vendor(self, dtype: torch.dtype) -> VendorInt4:
        """Return the layer by a vendor's kernels for rows of ``dtype``. Raises whatever these raise."""
        return VendorInt4(
            self.qweight, self.scaling, self.bias, inputs=self.in_features, group=self.group,
            is_bfloat16_scale=self.is_bfloat16_scale, dtype=dtype,
        )  # fmt: skip

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (O, I), inputs in the kernel's order."""
        out = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.qweight.device)
        return w4a16.dequantise(
            self.qweight, self.scaling, out, group=self.group, is_bfloat16_scale=self.is_bfloat16_scale
        )


def is_possible(tensors: GPTQTensors) -> bool:
    """Say whether the kernels take this layer."""
    return _group(tensors) is not None


def join(layers: Sequence[nn.Module]) -> TritonInt4Linear | None:
    """Return one layer that computes all ``layers`` of the same input, outputs side by side; None if it cannot."""
    if not all(isinstance(layer, TritonInt4Linear) for layer in layers):
        return None
    ours = [layer for layer in layers if isinstance(layer, TritonInt4Linear)]
    first = ours[0]
    same = all(
        (layer.in_features, layer.group, layer.is_bfloat16_scale, layer.bias is None, layer.order is None)
        == (first.in_features, first.group, first.is_bfloat16_scale, first.bias is None, first.order is None)
        and (first.order is None or bool((layer.order == first.order).all()))  # type: ignore[union-attr]
        for layer in ours
    )
    if not same:
        return None
    joined = TritonInt4Linear.__new__(TritonInt4Linear)
    nn.Module.__init__(joined)
    joined.in_features, joined.out_features = first.in_features, sum(layer.out_features for layer in ours)
    joined.group, joined.is_bfloat16_scale = first.group, first.is_bfloat16_scale
    joined.order, joined.vendor = first.order, None
    joined.qweight = nn.Buffer(torch.cat([layer.qweight for layer in ours], 1), persistent=False)
    joined.scaling = nn.Buffer(torch.cat([layer.scaling for layer in ours], 1), persistent=False)
    biases: list[Tensor] = [layer.bias for layer in ours if layer.bias is not None]
    joined.bias = nn.Buffer(torch.cat(biases), persistent=False) if biases else None
    return joined


def _packed(stored: Tensor) -> Tensor:
    """Return (B, O, 32) int32 of integers (I, O), as `kernels.w4a16` lays them out."""
    inputs, outputs = stored.shape
    blocks = -(-inputs // w4a16.BLOCK)
    whole = torch.zeros(blocks * w4a16.BLOCK, outputs, dtype=torch.int32, device=stored.device)
    whole[:inputs] = stored
    spread = whole.view(blocks, 8, w4a16.LANES, outputs)
    packed = torch.zeros(blocks, w4a16.LANES, outputs, dtype=torch.int32, device=stored.device)
    for place in range(8):
        packed |= spread[:, place] << (4 * place)
    return packed.transpose(1, 2).contiguous()


def _group(tensors: GPTQTensors) -> int | None:
    """Return the inputs that share a scale, as the kernels take them, or None."""
    inputs, groups = tensors.g_idx.numel(), tensors.scales.shape[0]
    if tensors.bits != 4 or inputs % groups or inputs % _INPUTS_STEP:
        return None
    size = inputs // groups
    # Act-order may, in principle, leave groups of unequal size.
    if bool((torch.bincount(tensors.g_idx, minlength=groups) != size).any()):
        return None
    if groups == 1:
        return -(-inputs // w4a16.BLOCK) * w4a16.BLOCK
    return size if size in (32, 64, 128) or size % w4a16.BLOCK == 0 else None
