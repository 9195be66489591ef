"""A float32 layer for the CPU whose weight lies as MKL's packed product wants it.

A plain product of few rows packs the weight again at every call. Packed once, 512 x 1536 takes at 1 / 8 / 32 / 64 / 256
rows 0.08 / 0.09 / 0.22 / 0.40 / 1.5 ms on 2 cores of a Xeon, and 0.07 / 0.20 / 0.82 / 0.64 / 1.8 ms plain
(`tests.bench.bench_prepacked` measures whole steps). The packed weight takes the plain one's place in memory.

Knows one layer and how to replace all of a model.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

_PACKED_FOR_ROWS: Final = 256  # a hint of MKL's: products of any number of rows can use it


# I inputs, O outputs, N rows
class PrepackedLinear(nn.Module):
    """Behaves as the Linear it replaces; has no plain ``weight``."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack ``weight`` (O, I) float32. ``bias`` (O,)."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # By as many threads as may ever compute: a weight that one packed is multiplied by one.
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
        self.packed = nn.Buffer(packed, persistent=False)
        self.bias = None if bias is None else nn.Buffer(bias, persistent=False)
        # The operator asks the plain weight for its shape alone.
        self._shape = torch.zeros(1).expand(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), float32."""
        rows = x.numel() // self.in_features
        y: Tensor = torch.ops.mkl._mkl_linear(x, self.packed, self._shape, self.bias, rows)
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> PrepackedLinear:
        """Share: MKL's packed weights must not be copied to another address, and nobody changes them."""
        return self


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
