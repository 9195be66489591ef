"""Contiguous copies of the keys and values of the rows that decode now, for attention on the CPU.

The paged cache stays the truth. Gathering it for every row, layer and step took more than half of a decode step: with
32 rows of 16 to 280 tokens and 6 layers 512 wide, 265 ms of CPU time, 88 ms with copies that grow by a position a step.
Rows are grouped by capacity, a power of two, so a short row pads to twice its length at most, whoever else decodes.

Knows rows and layer shapes. A row that comes back after it was away is copied anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.interfaces import BLOCK_TOKENS, Row
from workers.model.kv_cache import KVCache, LayerShape

_LEAST_CAPACITY = 64
_KEPT_CAPACITY = 512  # groups up to here have room for all rows at once, and keep it when empty


# n rows of a group, K kv heads, N longest of them, D head dim
@dataclass(slots=True, eq=False)
class _Entry:
    row: Row
    length: int = 0  # positions copied, the one of the current step included


class _Group:
    """Rows of one capacity, side by side without holes."""

    def __init__(self, shapes: Sequence[LayerShape], capacity: int, max_rows: int, dtype: torch.dtype) -> None:
        self.capacity = capacity
        self.entries: list[_Entry] = []
        # Pages that nobody touched cost no memory; yet of long rows, room for all may be more than can be asked for.
        self._room = max_rows if capacity <= _KEPT_CAPACITY else 1
        size = (self._room, capacity)
        self.keys = [_empty(size, shape.num_kv_heads, shape.key_dim, dtype) for shape in shapes]
        self.values = [_empty(size, shape.num_kv_heads, shape.value_dim, dtype) for shape in shapes]

    def add(self, entry: _Entry) -> int:
        """Give ``entry`` the place at the end."""
        place = len(self.entries)
        if place == self._room:
            self._grow()
        self.entries.append(entry)
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                # What is padded must be a number: 0 * NaN is NaN.
                tensor[place, :, entry.length - 1 :] = 0
        return place

    def _grow(self) -> None:
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = torch.cat([old, torch.empty_like(old)])
        self._room *= 2

    def remove(self, place: int) -> None:
        """Free a place; the last row moves into it."""
        last = len(self.entries) - 1
        moved = self.entries.pop()
        if place == last:
            return
        self.entries[place] = moved
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[place] = tensor[last]


class GroupPlan:
    """One group's part of a step: ``begin`` to ``end`` of the step's rows."""

    def __init__(self, group: _Group, begin: int) -> None:
        self._group = group
        self.begin, self.end = begin, begin + len(group.entries)
        self._lengths = torch.tensor([entry.length for entry in group.entries])  # (n,)
        self._longest = max(entry.length for entry in group.entries)
        self._masks: dict[int | None, Tensor | None] = {}
        self._places: dict[int, Tensor] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (n, K, D) of this step; return all of them so far, (n, K, N, D)."""
        size, heads, _ = keys.shape
        if heads not in self._places:
            rows = torch.arange(size).unsqueeze(1) * heads + torch.arange(heads)  # (n, K)
            self._places[heads] = (rows * self._group.capacity + self._lengths.unsqueeze(1) - 1).view(-1)
        places = self._places[heads]
        all_keys, all_values = self._group.keys[layer], self._group.values[layer]
        all_keys.view(-1, all_keys.shape[3]).index_copy_(0, places, keys.reshape(-1, keys.shape[2]))
        all_values.view(-1, all_values.shape[3]).index_copy_(0, places, values.reshape(-1, values.shape[2]))
        return all_keys[:size, :, : self._longest], all_values[:size, :, : self._longest]

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores: (n, 1, 1, N), or None when every row sees all N."""
        if window not in self._masks:
            positions = torch.arange(self._longest)
            seen = positions < self._lengths.unsqueeze(1)  # (n, N)
            if window is not None:
                seen &= positions >= self._lengths.unsqueeze(1) - window
            mask = None
            if not bool(seen.all()):
                mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None, None, :]
            self._masks[window] = mask
        return self._masks[window]


class DecodeCache:
    """The groups. Owned by the engine thread."""

    def __init__(self, shapes: Sequence[LayerShape], cache: KVCache, *, max_rows: int, dtype: torch.dtype) -> None:
        self._shapes, self._cache, self._max_rows, self._dtype = shapes, cache, max_rows, dtype
        self._groups: dict[int, _Group] = {}

    def admit(self, rows: Sequence[Row]) -> list[GroupPlan]:
        """Hold exactly ``rows`` (distinct sequences), copied up to their start; forget all others.

        The order of the step's rows is then that of `rows`.
        """
        wanted = {row.sequence_id: row for row in rows}
        outgrown: list[tuple[_Group, _Entry]] = []
        for group in list(self._groups.values()):
            for place in range(len(group.entries) - 1, -1, -1):
                entry = group.entries[place]
                row = wanted.get(entry.row.sequence_id)
                if row is None or not _goes_on(entry, row):
                    group.remove(place)
                    continue
                del wanted[row.sequence_id]
                entry.row, entry.length = row, row.start + 1
                if entry.length > group.capacity:
                    outgrown.append((group, entry))
        for group, entry in outgrown:
            self._move(group, entry)
        for row in wanted.values():
            self._copy(row)
        self._groups = {
            capacity: group
            for capacity, group in sorted(self._groups.items())
            if group.entries or capacity <= _KEPT_CAPACITY
        }
        plans: list[GroupPlan] = []
        for group in self._groups.values():
            if not group.entries:
                continue
            plans.append(GroupPlan(group, plans[-1].end if plans else 0))
        return plans

    def rows(self) -> list[Row]:
        """Return the rows held, in the order of the plans."""
        return [entry.row for group in self._groups.values() for entry in group.entries]

    def _group(self, length: int) -> _Group:
        capacity = max(_LEAST_CAPACITY, 1 << (length - 1).bit_length())
        if capacity not in self._groups:
            self._groups[capacity] = _Group(self._shapes, capacity, self._max_rows, self._dtype)
        return self._groups[capacity]

    def _copy(self, row: Row) -> None:
        group = self._group(row.start + 1)
        place = group.add(_Entry(row=row, length=row.start + 1))
        if not row.start:
            return
        blocks = torch.tensor(row.block_table[: -(-row.start // BLOCK_TOKENS)])
        slots = (blocks.unsqueeze(1) * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).view(-1)[: row.start]
        for layer in range(len(self._shapes)):
            keys, values = self._cache.read(layer, slots)  # (start, K, D)
            group.keys[layer][place, :, : row.start] = keys.transpose(0, 1)
            group.values[layer][place, :, : row.start] = values.transpose(0, 1)

    def _move(self, group: _Group, entry: _Entry) -> None:
        place, length = group.entries.index(entry), entry.length - 1
        bigger = self._group(entry.length)
        new_place = bigger.add(entry)
        for layer in range(len(self._shapes)):
            bigger.keys[layer][new_place, :, :length] = group.keys[layer][place, :, :length]
            bigger.values[layer][new_place, :, :length] = group.values[layer][place, :, :length]
        group.remove(place)


def _goes_on(entry: _Entry, row: Row) -> bool:
    """Say whether ``row`` is the next step of what was copied."""
    table = entry.row.block_table
    return entry.length == row.start and row.block_table[: len(table)] == table


def _empty(size: tuple[int, int], heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    """(rows, K, capacity, D)."""
    return torch.empty(size[0], heads, size[1], dim, dtype=dtype)
