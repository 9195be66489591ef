"""A float32 layer for the CPU whose weight lies as a library's packed product wants it.

A plain product of few rows packs the weight again at every call. Packed once for MKL, 512 x 1536 takes at 1 / 8 / 32 /
64 / 256 rows 0.08 / 0.09 / 0.22 / 0.40 / 1.5 ms on 2 cores of a Xeon, and 0.07 / 0.20 / 0.82 / 0.64 / 1.8 ms plain. On
processors that are not Intel's, MKL keeps to slow paths, packed or not: on 2 cores of an EPYC, 2048 x 6144 takes at
1 / 8 / 32 / 64 rows 2.5 / 7.8 / 13 / 20 ms, and packed for oneDNN 2.9 / 1.9 / 4.7 / 10. `tests.bench.bench_prepacked`
measures whole steps. The packed weight takes the plain one's place in memory.

Knows one layer and how to replace all of a model.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

_PACKED_FOR_ROWS: Final = {"mkl": 256, "onednn": 64}  # hints: products of any number of rows can use it


# I inputs, O outputs, N rows
class PrepackedLinear(nn.Module):
    """Behaves as the Linear it replaces; has no plain ``weight``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, library: str | None = None) -> None:
        """Pack ``weight`` (O, I) float32 for ``library``: mkl or onednn, by default the better one. ``bias`` (O,)."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.library = library or best_library()
        # By as many threads as may ever compute: a weight that one packed, MKL multiplies by one.
        if self.library == "mkl":
            packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS["mkl"])
        else:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS["onednn"])
        self.packed = nn.Buffer(packed, persistent=False)
        self.bias = None if bias is None else nn.Buffer(bias, persistent=False)
        # MKL's operator asks the plain weight for its shape alone.
        self._shape = torch.zeros(1).expand(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), float32."""
        y: Tensor
        rows = x.numel() // self.in_features
        if self.library == "mkl":
            y = torch.ops.mkl._mkl_linear(x, self.packed, self._shape, self.bias, rows)
        else:
            flat = x.reshape(rows, self.in_features)
            y = torch.ops.mkldnn._linear_pointwise(flat, self.packed, self.bias, "none", [], "")
            y = y.view(*x.shape[:-1], self.out_features)
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> PrepackedLinear:
        """Share: packed weights must not be copied to another address, and nobody changes them."""
        return self


@functools.cache
def best_library() -> str:
    """Return mkl on Intel's processors, else onednn. Not by a measurement: a resumed answer must be computed alike."""
    try:
        is_intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        is_intel = True
    return "mkl" if is_intel or not torch.backends.mkldnn.is_available() else "onednn"


def is_possible(weight: Tensor) -> bool:
    """Say whether a layer with this weight can be packed here."""
    return (
        weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.dim() == 2
        and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
    )  # fmt: skip


def prepack(linear: nn.Linear) -> nn.Linear | PrepackedLinear:
    """Return the layer packed, or as it is where that is not possible."""
    return PrepackedLinear(linear.weight.data, linear.bias) if is_possible(linear.weight) else linear


def prepack_all(model: nn.Module) -> int:
    """Replace every Linear in ``model`` that can be packed; return how many were."""
    packed: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() tells a shared layer once
            # Subclasses may compute something else; what GPTQ unpacked does not.
            if type(child).__name__ in ("Linear", "DenseGPTQLinear") and isinstance(child, nn.Linear):
                if id(child) not in packed:
                    packed[id(child)] = prepack(child)
                setattr(parent, name, packed[id(child)])
    return sum(isinstance(layer, PrepackedLinear) for layer in packed.values())
