"""What a step reads and writes of the paged cache, as tensors on the device, for the kernels in `kernels/`.

`PagedPlan.of_rows` packs any mix of rows into one copy to the device. `DecodeBuffers` keeps the tensors of a decode
step in one place for good, so that a captured launch finds them; a step rewrites what changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from workers.engine.interfaces import BLOCK_TOKENS, Row
from workers.model.kernels.cache_write import cache_write
from workers.model.kernels.paged_decode import choose_splits, paged_decode
from workers.model.kernels.paged_prefill import paged_prefill
from workers.model.kv_cache import KVCache

_NOWHERE = -1
_ALIGNED = 16


# T tokens of the step, R rows that decode, C chunks, H query heads, K kv heads, D head dim
class PagedPlan:
    """Rows that decode come first, then the chunks. Its attention is entered from `attention.paged_attention`."""

    def __init__(
        self,
        cache: KVCache,
        *,
        tokens: Tensor,  # (T,) int64
        positions: Tensor,  # (T,) int64
        slots: Tensor,  # (T,) int64; below 0: a row of padding
        lengths: Tensor,  # (R,) int32
        tables: Tensor,  # (R, blocks) int32
        chunks: ChunkTensors | None = None,
        splits: tuple[int, int] | None = None,
    ) -> None:
        self.cache, self.splits = cache, splits
        self.tokens, self.positions, self.slots = tokens, positions, slots
        self.lengths, self.tables, self.chunks = lengths, tables, chunks
        self.num_decodes = lengths.shape[0]
        self.chunk_ends: list[int] = chunks.ends if chunks is not None else []

    @classmethod
    def of_rows(
        cls,
        cache: KVCache,
        decodes: Sequence[Row],
        chunks: Sequence[Row],
        device: torch.device,
        splits: tuple[int, int] | None = None,
    ) -> PagedPlan:
        """Plan a step with at least one chunk. ``splits``, as of `choose_splits`, are those of its decodes.

        Every section begins at a multiple of 16 numbers and tables are as wide, for Triton compiles a kernel anew for
        pointers and strides that are aligned otherwise, and that takes seconds.
        """
        rows = [*decodes, *chunks]
        sizes = [len(row.tokens) for row in rows]
        num_tokens, num_decodes = sum(sizes), len(decodes)
        width = _aligned(max(_num_blocks(row) for row in rows))
        begins = list(accumulate(sizes[num_decodes:], initial=0))  # of the chunks, among the chunks' tokens
        tables = np.zeros((len(rows), width), np.int64)
        positions = np.empty(num_tokens, np.int64)
        slots = np.empty(num_tokens, np.int64)
        at = 0
        for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            count = _num_blocks(row)
            tables[index, :count] = row.block_table[:count]
            own = np.arange(row.start, row.start + size)
            positions[at : at + size] = own
            slots[at : at + size] = tables[index, own // BLOCK_TOKENS] * BLOCK_TOKENS + own % BLOCK_TOKENS
            at += size
        tokens = np.fromiter((token for row in rows for token in row.tokens), np.int64, num_tokens)
        lengths = np.array([row.start + 1 for row in decodes], np.int64)
        starts = np.array([row.start for row in chunks], np.int64)
        longs = _Sections(tokens, positions, slots)
        ints = _Sections(lengths, starts, np.array(begins, np.int64), tables.reshape(-1))
        host = torch.from_numpy(np.concatenate([longs.packed, ints.packed]))
        if device.type == "cuda":
            host = host.pin_memory()
        packed = host.to(device, non_blocking=True)
        device_tokens, device_positions, device_slots = longs.of(packed)
        device_lengths, device_starts, device_begins, flat = ints.of(packed[longs.packed.size :].int())
        all_tables = flat.view(len(rows), width)
        return cls(
            cache,
            tokens=device_tokens,
            positions=device_positions,
            slots=device_slots,
            lengths=device_lengths,
            tables=all_tables[:num_decodes],
            chunks=ChunkTensors(
                ends=[num_decodes + end for end in begins[1:]], longest=max(sizes[num_decodes:]), begins=device_begins,
                starts=device_starts, tables=all_tables[num_decodes:],
            ),
            splits=splits,
        )  # fmt: skip

    def attend(
        self,
        layer: int,
        query: Tensor,  # (T, H, D)
        key: Tensor,  # (T, K, D)
        value: Tensor,  # (T, K, D)
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Store keys and values, and return the attention (T, H, D)."""
        keys, values = self.cache.layer(layer)
        cache_write(key, value, self.slots, keys, values)
        out = torch.empty(query.shape[0], query.shape[1], values.shape[2], dtype=query.dtype, device=query.device)
        num = self.num_decodes
        if num:
            splits = self.splits or choose_splits(num, keys.shape[1], self.tables.shape[1] * BLOCK_TOKENS)
            paged_decode(
                query[:num], keys, values, self.tables, self.lengths, scaling=scaling, window=window, softcap=softcap,
                out=out[:num], splits=splits,
            )  # fmt: skip
        if self.chunks is not None:
            chunks = self.chunks
            paged_prefill(
                query[num:], keys, values, chunks.tables, chunks.begins, chunks.starts, longest=chunks.longest,
                scaling=scaling, window=window, softcap=softcap, out=out[num:],
            )  # fmt: skip
        return out


class ChunkTensors:
    """The chunks of a step."""

    def __init__(self, *, ends: list[int], longest: int, begins: Tensor, starts: Tensor, tables: Tensor) -> None:
        self.ends, self.longest = ends, longest  # on the host: where each chunk ends in T, tokens of the longest
        self.begins, self.starts, self.tables = begins, starts, tables  # (C + 1,), (C,), (C, blocks) int32


class DecodeBuffers:
    """The tensors of a decode step of up to ``size`` rows; rows of padding see and write nothing."""

    def __init__(self, size: int, max_blocks: int, device: torch.device, cache: KVCache) -> None:
        is_cuda = device.type == "cuda"
        max_blocks = _aligned(max_blocks)
        self._head = torch.zeros(4, size, dtype=torch.int64, pin_memory=is_cuda)
        self._head[2] = _NOWHERE
        self._tables = torch.zeros(size, max_blocks, dtype=torch.int32, pin_memory=is_cuda)
        self._host_head, self._host_tables = self._head.numpy(), self._tables.numpy()
        self._device_head = self._head.to(device, copy=True)
        self._device_tables = self._tables.to(device, copy=True)
        self._lengths = torch.zeros(size, dtype=torch.int32, device=device)
        self._held: list[tuple[int, ...]] = [()] * size
        self._num_rows = 0
        tokens, positions, slots, _ = self._device_head
        self.plan = PagedPlan(
            cache, tokens=tokens, positions=positions, slots=slots, lengths=self._lengths, tables=self._device_tables
        )

    def fill(self, tokens: Sequence[int], starts: Sequence[int], tables: Sequence[tuple[int, ...]]) -> None:
        """Let the next launch compute one token for each row, at position ``starts`` of its block table.

        The host's side must not be read any more by the copy before. A table that is known by its identity is not
        written again: this lies between two steps, where the device waits.
        """
        head, num = self._host_head, len(tokens)
        head[0, :num] = tokens
        head[1, :num] = starts
        head[2, :num] = [
            table[start // BLOCK_TOKENS] * BLOCK_TOKENS + start % BLOCK_TOKENS
            for start, table in zip(starts, tables, strict=True)
        ]
        head[3, :num] = head[1, :num] + 1
        if num < self._num_rows:
            head[:, num : self._num_rows] = 0
            head[2, num : self._num_rows] = _NOWHERE
        self._num_rows = num
        has_changed = False
        for place, table in enumerate(tables):
            if table is not self._held[place]:
                self._host_tables[place, : len(table)] = table
                self._held[place] = table
                has_changed = True
        self._device_head.copy_(self._head, non_blocking=True)
        self._lengths.copy_(self._device_head[3], non_blocking=True)
        if has_changed:
            self._device_tables.copy_(self._tables, non_blocking=True)


class _Sections:
    """Arrays side by side, each at a multiple of 16 numbers."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self._sizes = [array.size for array in arrays]
        self._begins = list(accumulate((_aligned(size) for size in self._sizes), initial=0))
        self.packed = np.zeros(self._begins[-1], np.int64)
        for array, begin in zip(arrays, self._begins, strict=False):
            self.packed[begin : begin + array.size] = array

    def of(self, packed: Tensor) -> list[Tensor]:
        """Return the sections of what was packed."""
        return [packed[begin : begin + size] for begin, size in zip(self._begins, self._sizes, strict=False)]


def _aligned(number: int) -> int:
    return -(-number // _ALIGNED) * _ALIGNED


def _num_blocks(row: Row) -> int:
    return -(-(row.start + len(row.tokens)) // BLOCK_TOKENS)
