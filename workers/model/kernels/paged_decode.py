"""Attention of rows that decode, read straight from the paged cache.

A row's positions are divided among programs which keep what they found in float32; a second kernel puts that together.
How many programs share a row is fixed by the launch, what each of them reads follows from the row's own length on the
device: a captured launch serves any lengths, and a row's result does not depend on the rows beside it.

Knows tensors. What it does not see it never lets through, be it no number at all: masked keys and values are read as 0.

Source: Dao et al. 2023, Flash-Decoding; Kwon et al. 2023 (arXiv:2309.06180).
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engine.interfaces import BLOCK_TOKENS

_LOG2_E: Final = 1.4426950408889634
_PROGRAMS: Final = 264  # two for each of a Hopper's 132 multiprocessors
_MOST_SPLITS: Final = 64
_TILE: Final = 64  # positions a program takes at a time
_LONG_TILES: Final = 32  # a table of so many tiles is shared even when there are rows enough for all


# R rows, H query heads, K kv heads, G = H / K, D key dim, V value dim, P programs that share a row
def choose_splits(num_rows: int, num_kv_heads: int, capacity: int) -> tuple[int, int]:
    """Return by how many programs a row of at most ``capacity`` positions is shared, and the least tiles for each.

    Both follow from the arguments alone, never from the lengths.
    """
    tiles = -(-capacity // _TILE)
    by_rows = _power_of_two(max(1, _PROGRAMS // (num_rows * num_kv_heads)))
    by_length = _power_of_two(max(1, tiles // _LONG_TILES))
    most = triton.next_power_of_2(max(1, tiles))
    return min(_MOST_SPLITS, most, max(by_rows, by_length)), max(1, 16 // by_rows)


def paged_decode(
    query: Tensor,  # (R, H, D)
    keys: Tensor,  # (slots, K, D) of one layer, as KVCache keeps them
    values: Tensor,  # (slots, K, V)
    block_tables: Tensor,  # (R, blocks) int32
    lengths: Tensor,  # (R,) int32 positions to see, the current one included; 0: a row of padding
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    out: Tensor | None = None,
    splits: tuple[int, int] | None = None,
) -> Tensor:
    """Return (R, H, V), zeros for rows of padding. ``splits``: as of `choose_splits`, which is the default."""
    num_rows, num_heads, key_dim = query.shape
    num_kv_heads, value_dim = values.shape[1], values.shape[2]
    assert keys.shape[1:] == (num_kv_heads, key_dim)
    assert num_heads % num_kv_heads == 0
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert keys.dtype == query.dtype
    assert block_tables.dtype == torch.int32
    assert lengths.dtype == torch.int32
    assert block_tables.stride(1) == 1
    assert lengths.stride(0) == 1
    if out is None:
        out = torch.empty(num_rows, num_heads, value_dim, dtype=query.dtype, device=query.device)
    assert out.is_contiguous()
    if query.stride(2) != 1:
        query = query.contiguous()
    num_splits, least_tiles = splits or choose_splits(num_rows, num_kv_heads, block_tables.shape[1] * BLOCK_TOKENS)
    # The allocator of torch gives it from the graph's own memory while a graph is captured.
    partial, greatest, total = out, out, out
    if num_splits > 1:
        place = (num_rows, num_heads, num_splits)
        partial = torch.empty(*place, value_dim, dtype=torch.float32, device=query.device)
        greatest, total = torch.empty(2, *place, dtype=torch.float32, device=query.device)
    scaling = key_dim**-0.5 if scaling is None else scaling
    group = num_heads // num_kv_heads
    is_wide = max(key_dim, value_dim) * query.element_size() > 256
    _attend[(num_rows, num_kv_heads, num_splits)](
        query, keys, values, block_tables, lengths, out, partial, greatest, total,
        query.stride(0), query.stride(1), block_tables.stride(0),
        scaling * _LOG2_E if softcap is None else 2 * scaling * _LOG2_E / softcap,
        0.0 if softcap is None else softcap * _LOG2_E,
        NUM_KV_HEADS=num_kv_heads, GROUP=group, KEY_DIM=key_dim, VALUE_DIM=value_dim,
        WINDOW=window or 0, HAS_CAP=softcap is not None, SPLITS=num_splits, LEAST_TILES=least_tiles,
        PAGE=BLOCK_TOKENS, TILE=_TILE,
        BLOCK_GROUP=max(16, triton.next_power_of_2(group)),
        BLOCK_KEY=max(16, triton.next_power_of_2(key_dim)), BLOCK_VALUE=max(16, triton.next_power_of_2(value_dim)),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4, num_stages=2 if is_wide else 4,
    )  # fmt: skip
    if num_splits > 1:
        _combine[(num_rows, num_heads)](
            partial, greatest, total, out,
            NUM_HEADS=num_heads, VALUE_DIM=value_dim, SPLITS=num_splits,
            BLOCK_VALUE=max(16, triton.next_power_of_2(value_dim)), num_warps=4,
        )  # fmt: skip
    return out


def _power_of_two(number: int) -> int:
    """Return the greatest power of two up to ``number``."""
    return 1 << (number.bit_length() - 1)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, tables, lengths, out, partial, greatest, total,
    query_row, query_head, table_row, scale, cap,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, SPLITS: tl.constexpr, LEAST_TILES: tl.constexpr,
    PAGE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr, BLOCK_KEY: tl.constexpr, BLOCK_VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    first = 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0)
    first_tile = first // TILE
    num_tiles = (length + TILE - 1) // TILE - first_tile
    begin = first_tile
    end = first_tile + num_tiles
    if SPLITS > 1:
        used = tl.maximum(tl.minimum((num_tiles + LEAST_TILES - 1) // LEAST_TILES, SPLITS), 1)
        begin = first_tile + num_tiles * split // used
        end = tl.minimum(first_tile + num_tiles * (split + 1) // used, first_tile + num_tiles)

    members = tl.arange(0, BLOCK_GROUP)
    key_dims = tl.arange(0, BLOCK_KEY)
    value_dims = tl.arange(0, BLOCK_VALUE)
    offsets = tl.arange(0, TILE)
    heads = kv_head * GROUP + members
    q = tl.load(
        query + row * query_row + heads[:, None] * query_head + key_dims[None, :],
        mask=(members < GROUP)[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    highest = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_GROUP], tl.float32)
    found = tl.zeros([BLOCK_GROUP, BLOCK_VALUE], tl.float32)
    for tile in range(begin, end):
        positions = tile * TILE + offsets
        seen = positions < length
        if WINDOW:
            seen = seen & (positions >= first)
        pages = tl.load(tables + row * table_row + positions // PAGE, mask=seen, other=0)
        slots = pages.to(tl.int64) * PAGE + positions % PAGE
        k = tl.load(
            keys + slots[:, None] * (NUM_KV_HEADS * KEY_DIM) + kv_head * KEY_DIM + key_dims[None, :],
            mask=seen[:, None] & (key_dims < KEY_DIM)[None, :],
            other=0.0,
        )
        v = tl.load(
            values + slots[:, None] * (NUM_KV_HEADS * VALUE_DIM) + kv_head * VALUE_DIM + value_dims[None, :],
            mask=seen[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if HAS_CAP:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1)
            scores = cap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # Every tile has a position that is seen, so the highest is a number from the first one on.
        higher = tl.maximum(highest, tl.max(scores, 1))
        fade = tl.exp2(highest - higher)
        chances = tl.exp2(scores - higher[:, None])
        weight = weight * fade + tl.sum(chances, 1)
        found = tl.dot(chances.to(v.dtype), v, found * fade[:, None], input_precision=PRECISION)
        highest = higher

    wanted = members < GROUP
    stored = wanted[:, None] & (value_dims < VALUE_DIM)[None, :]
    if SPLITS == 1:
        found = found / tl.where(weight == 0.0, 1.0, weight)[:, None]
        places = (row * (NUM_KV_HEADS * GROUP) + heads) * VALUE_DIM
        tl.store(out + places[:, None] + value_dims[None, :], found.to(out.dtype.element_ty), mask=stored)
    else:
        places = (row * (NUM_KV_HEADS * GROUP) + heads) * SPLITS + split
        tl.store(greatest + places, highest, mask=wanted)
        tl.store(total + places, weight, mask=wanted)
        tl.store(partial + places[:, None] * VALUE_DIM + value_dims[None, :], found, mask=stored & (begin < end))


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    partial, greatest, total, out,
    NUM_HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * NUM_HEADS + tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    value_dims = tl.arange(0, BLOCK_VALUE)
    high = tl.load(greatest + place * SPLITS + splits)
    weight = tl.load(total + place * SPLITS + splits)
    # A program without positions wrote no partial result. A weight that is no number is not 0, and shows in the result.
    is_used = weight != 0.0
    found = tl.load(
        partial + (place * SPLITS + splits)[:, None] * VALUE_DIM + value_dims[None, :],
        mask=is_used[:, None] & (value_dims < VALUE_DIM)[None, :],
        other=0.0,
    )
    highest = tl.max(high, 0)
    share = tl.where(is_used, tl.exp2(high - highest), 0.0)
    weight_sum = tl.sum(share * weight, 0)
    result = tl.sum(share[:, None] * found, 0) / tl.where(weight_sum == 0.0, 1.0, weight_sum)
    tl.store(out + place * VALUE_DIM + value_dims, result.to(out.dtype.element_ty), mask=value_dims < VALUE_DIM)
