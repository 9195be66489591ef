"""Keys and values of every layer, in blocks of BLOCK_TOKENS positions.

Knows slots (block * BLOCK_TOKENS + offset) and tensors. Which sequence owns which block is the engine's to say.

One block more than the engine knows of lies at the end and stays zero: whoever pads reads there, never from a block
where another row may have left a number that is none (0 * NaN is NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.interfaces import BLOCK_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer keeps per position, and how far back it looks."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None  # positions a query sees, itself included; None: all


class KVCache:
    """Paged keys and values. Owned by the engine thread."""

    def __init__(
        self, shapes: Sequence[LayerShape], *, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.null_slot = num_blocks * BLOCK_TOKENS
        num_slots = (num_blocks + 1) * BLOCK_TOKENS
        self._keys: list[Tensor] = []  # per layer (slots, kv heads, key dim)
        self._values: list[Tensor] = []
        for shape in shapes:
            # Not zeroed: pages nobody used cost no memory on the CPU.
            keys = torch.empty(num_slots, shape.num_kv_heads, shape.key_dim, dtype=dtype, device=device)
            values = torch.empty(num_slots, shape.num_kv_heads, shape.value_dim, dtype=dtype, device=device)
            keys[self.null_slot :] = 0
            values[self.null_slot :] = 0
            self._keys.append(keys)
            self._values.append(values)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (slots, kv heads, dim) of a layer themselves, for kernels that read and write them."""
        return self._keys[layer], self._values[layer]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (T, kv heads, dim) of a layer at ``slots`` (T,)."""
        self._keys[layer].index_copy_(0, slots, keys)
        self._values[layer].index_copy_(0, slots, values)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of keys and values (N, kv heads, dim) of a layer at ``slots`` (N,)."""
        return self._keys[layer].index_select(0, slots), self._values[layer].index_select(0, slots)


def block_bytes(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """Return the bytes that one block takes over all layers."""
    per_position = sum(shape.num_kv_heads * (shape.key_dim + shape.value_dim) for shape in shapes)
    return per_position * BLOCK_TOKENS * dtype.itemsize
