"""Linear layers whose weights a GPTQ checkpoint holds as 4- or 8-bit integers.

Knows the tensors of one layer (qweight, qzeros, scales, g_idx, bias) and nothing of files or models.

A weight is ``scale[group] * (stored - zero[group])``, its group given by the input column (``g_idx``; act-order
permutes it). Integers lie packed in int32, lowest bits first: ``qweight`` along the inputs, ``qzeros`` along the
outputs. The first format (v1) stores each zero less one, the second (v2) as it is.

Two backends. *dense* unpacks once at load, to 8 times the memory in float32 and 4 times in bfloat16. *packed* keeps the
integers and unpacks at every call. Measured in float32 on one CPU core, all linears of a layer, ms dense / packed:
256 wide (the bundled model's size) 0.3 / 8.9 at 1 row, 1.5 / 9.6 at 32; 512 wide 1.8 / 47 and 5.9 / 29; 2048 wide
20 / 958 and 102 / 1211. So dense is the default, and packed is for models that would not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PACKED_BITS = 32


class BadQuantisation(ValueError):
    """The tensors of a quantised layer do not fit each other."""


# I inputs, O outputs, G groups, P integers per int32
@dataclass(frozen=True, slots=True, kw_only=True)
class GPTQTensors:
    """What a checkpoint holds for one layer, zeros as v2 has them."""

    bits: int
    qweight: Tensor  # (I / P, O) int32
    qzeros: Tensor  # (G, O / P) int32
    scales: Tensor  # (G, O) float
    g_idx: Tensor  # (I,) int64, the group of each input
    bias: Tensor | None  # (O,)

    @classmethod
    def read(
        cls,
        *,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None,
        bias: Tensor | None,
        in_features: int,
        out_features: int,
        bits: int,
        group_size: int,
        is_v1: bool,
    ) -> GPTQTensors:
        """Check the tensors against the layer's shape. Raises BadQuantisation with what does not fit."""
        if bits not in (4, 8):
            raise BadQuantisation(f"{bits}-bit weights; 4 and 8 bits can be read")
        per_int = PACKED_BITS // bits
        if in_features % per_int or out_features % per_int:
            raise BadQuantisation(f"a layer of {in_features} x {out_features} cannot be packed {per_int} to an integer")
        group = in_features if group_size == -1 else group_size
        if group < 1:
            raise BadQuantisation(f"group size {group_size}; -1 or a positive number was expected")
        num_groups = -(-in_features // group)
        expected = {
            "qweight": (qweight, (in_features // per_int, out_features)),
            "qzeros": (qzeros, (num_groups, out_features // per_int)),
            "scales": (scales, (num_groups, out_features)),
        }
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise BadQuantisation(f"{name} has shape {tuple(tensor.shape)} where {shape} was expected")
        if qweight.dtype != torch.int32 or qzeros.dtype != torch.int32:
            raise BadQuantisation(f"packed integers of type {qweight.dtype}, {qzeros.dtype}; int32 was expected")
        if g_idx is None:
            g_idx = torch.arange(in_features) // group
        if tuple(g_idx.shape) != (in_features,):
            raise BadQuantisation(f"g_idx has shape {tuple(g_idx.shape)} where ({in_features},) was expected")
        if int(g_idx.min()) < 0 or int(g_idx.max()) >= num_groups:
            raise BadQuantisation(f"g_idx names a group outside 0..{num_groups - 1}")
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise BadQuantisation(f"bias has shape {tuple(bias.shape)} where ({out_features},) was expected")
        if is_v1:
            # On the packed integers, with carry: the writers subtract there too, so a zero of 0 comes back right.
            qzeros = qzeros + _ones(bits)
        return cls(bits=bits, qweight=qweight, qzeros=qzeros, scales=scales, g_idx=g_idx.long(), bias=bias)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (O, I) as a dense Linear has it; computed in float32, then rounded to ``dtype``."""
        return _dequantise(self.qweight, self.qzeros, self.scales, self.g_idx, self.bits).t().contiguous().to(dtype)


class DenseGPTQLinear(nn.Linear):
    """A layer unpacked once at load. Behaves as the Linear it replaces."""

    @classmethod
    def of(cls, tensors: GPTQTensors, *, dtype: torch.dtype, device: torch.device) -> DenseGPTQLinear:
        """Unpack on the CPU, then move."""
        weight = tensors.dequantise(dtype)  # (O, I)
        layer = cls(weight.shape[1], weight.shape[0], bias=tensors.bias is not None, device="meta", dtype=dtype)
        layer.weight = nn.Parameter(weight.to(device), requires_grad=False)
        if tensors.bias is not None:
            layer.bias = nn.Parameter(tensors.bias.to(device, dtype), requires_grad=False)
        return layer


class PackedGPTQLinear(nn.Module):
    """A layer that keeps its integers packed and unpacks them at every call."""

    def __init__(self, tensors: GPTQTensors, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.bits = tensors.bits
        self.in_features = tensors.g_idx.numel()
        self.out_features = tensors.scales.shape[1]
        self.qweight = nn.Buffer(tensors.qweight.to(device), persistent=False)
        self.qzeros = nn.Buffer(tensors.qzeros.to(device), persistent=False)
        self.scales = nn.Buffer(tensors.scales.to(device), persistent=False)
        self.g_idx = nn.Buffer(tensors.g_idx.to(device), persistent=False)
        self.bias = None if tensors.bias is None else nn.Buffer(tensors.bias.to(device, dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the type of ``x``."""
        weight = _dequantise(self.qweight, self.qzeros, self.scales, self.g_idx, self.bits)  # (I, O) float32
        y = x @ weight.to(x.dtype)
        return y if self.bias is None else y + self.bias


def unpack(packed: Tensor, bits: int, *, dim: int) -> Tensor:
    """Return the integers that lie packed in int32 along ``dim`` (0 or 1), as int32."""
    shifts = torch.arange(0, PACKED_BITS, bits, dtype=torch.int32, device=packed.device)  # (P,)
    mask = (1 << bits) - 1
    if dim == 0:
        spread = packed.unsqueeze(1) >> shifts.view(1, -1, 1)  # (N, P, O)
        return (spread & mask).reshape(-1, packed.shape[1])
    spread = packed.unsqueeze(2) >> shifts.view(1, 1, -1)  # (G, N, P)
    return (spread & mask).reshape(packed.shape[0], -1)


def pack(integers: Tensor, bits: int, *, dim: int) -> Tensor:
    """Return int32 that hold ``integers`` packed along ``dim``: the inverse of `unpack`."""
    per_int = PACKED_BITS // bits
    shifts = torch.arange(0, PACKED_BITS, bits, dtype=torch.int64)
    wide = integers.long() & ((1 << bits) - 1)
    if dim == 0:
        packed = (wide.view(-1, per_int, wide.shape[1]) << shifts.view(1, -1, 1)).sum(1)
    else:
        packed = (wide.view(wide.shape[0], -1, per_int) << shifts.view(1, 1, -1)).sum(2)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def _dequantise(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, bits: int) -> Tensor:
    """(I, O) float32."""
    stored = unpack(qweight, bits, dim=0)  # (I, O)
    zeros = unpack(qzeros, bits, dim=1)  # (G, O)
    return scales.float()[g_idx] * (stored - zeros[g_idx]).float()


def _ones(bits: int) -> int:
    """Return an int32 with a one in each packed integer."""
    return sum(1 << shift for shift in range(0, PACKED_BITS, bits))
