"""Causal attention of several chunks of prefill at once, read straight from the paged cache.

The chunks' own keys and values are in the cache already. Knows tensors; masked keys and values are read as 0, so what
lies in blocks of others, be it no number at all, never comes through.

Source: Dao 2023, FlashAttention-2 (arXiv:2307.08691).
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.engine.interfaces import BLOCK_TOKENS

_LOG2_E: Final = 1.4426950408889634
_FULL_DEVICE: Final = 264  # programs; with fewer, smaller ones keep more of the device busy


# T tokens, C chunks, H query heads, K kv heads, G = H / K, D key dim, V value dim
def paged_prefill(
    query: Tensor,  # (T, H, D) the chunks' tokens one after the other
    keys: Tensor,  # (slots, K, D) of one layer, as KVCache keeps them
    values: Tensor,  # (slots, K, V)
    block_tables: Tensor,  # (C, blocks) int32
    ends: Tensor,  # (C + 1,) int32 where each chunk begins in ``query``, and the end
    starts: Tensor,  # (C,) int32 positions before each chunk
    *,
    longest: int,  # tokens of the longest chunk
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return (T, H, V)."""
    num_tokens, num_heads, key_dim = query.shape
    num_kv_heads, value_dim = values.shape[1], values.shape[2]
    num_chunks = starts.shape[0]
    assert keys.shape[1:] == (num_kv_heads, key_dim)
    assert num_heads % num_kv_heads == 0
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert keys.dtype == query.dtype
    assert block_tables.dtype == ends.dtype == starts.dtype == torch.int32
    assert block_tables.stride(1) == ends.stride(0) == 1
    assert starts.is_contiguous()
    if out is None:
        out = torch.empty(num_tokens, num_heads, value_dim, dtype=query.dtype, device=query.device)
    assert out.is_contiguous()
    if query.stride(2) != 1:
        query = query.contiguous()
    scaling = key_dim**-0.5 if scaling is None else scaling
    is_wide = max(key_dim, value_dim) * query.element_size() > 256
    rows = 128
    if is_wide or triton.cdiv(longest, rows) * num_heads * num_chunks < _FULL_DEVICE:
        rows = 64
    _attend[(triton.cdiv(longest, rows), num_heads, num_chunks)](
        query, keys, values, block_tables, ends, starts, out,
        query.stride(0), query.stride(1), block_tables.stride(0),
        scaling * _LOG2_E if softcap is None else 2 * scaling * _LOG2_E / softcap,
        0.0 if softcap is None else softcap * _LOG2_E,
        NUM_KV_HEADS=num_kv_heads, GROUP=num_heads // num_kv_heads, KEY_DIM=key_dim, VALUE_DIM=value_dim,
        WINDOW=window or 0, HAS_CAP=softcap is not None,
        PAGE=BLOCK_TOKENS, ROWS=rows, TILE=32 if is_wide else 64,
        BLOCK_KEY=max(16, triton.next_power_of_2(key_dim)), BLOCK_VALUE=max(16, triton.next_power_of_2(value_dim)),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=8 if rows == 128 else 4, num_stages=2 if is_wide else 3,
    )  # fmt: skip
    return out


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, tables, ends, starts, out,
    query_token, query_head, table_row, scale, cap,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    BLOCK_KEY: tl.constexpr, BLOCK_VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # The last rows of a chunk have most to read, so they go first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    chunk = tl.program_id(2)
    begin = tl.load(ends + chunk)
    size = tl.load(ends + chunk + 1) - begin
    first_row = block * ROWS
    if first_row >= size:
        return
    start = tl.load(starts + chunk)
    length = start + size
    kv_head = head // GROUP
    key_dims = tl.arange(0, BLOCK_KEY)
    value_dims = tl.arange(0, BLOCK_VALUE)
    rows = first_row + tl.arange(0, ROWS)
    tokens = (begin + rows).to(tl.int64)
    q = tl.load(
        query + tokens[:, None] * query_token + head * query_head + key_dims[None, :],
        mask=(rows < size)[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, BLOCK_VALUE], tl.float32)
    table = tables + chunk.to(tl.int64) * table_row
    own_keys = keys + kv_head * KEY_DIM
    own_values = values + kv_head * VALUE_DIM
    last = start + tl.minimum(first_row + ROWS, size)  # no row of the block sees this position or one after it
    lowest = 0
    clear = (start + first_row + 1) // TILE * TILE  # every row sees every position before this one
    if WINDOW:
        lowest = tl.maximum(start + first_row - WINDOW + 1, 0) // TILE * TILE
        clear = lowest
    highest, weight, found = _over_tiles(
        q, highest, weight, found, own_keys, own_values, table, lowest, clear, start + rows, length, scale, cap,
        NUM_KV_HEADS, KEY_DIM, VALUE_DIM, 0, HAS_CAP, PAGE, TILE, BLOCK_KEY, BLOCK_VALUE, PRECISION, False,
    )  # fmt: skip
    highest, weight, found = _over_tiles(
        q, highest, weight, found, own_keys, own_values, table, clear, last, start + rows, length, scale, cap,
        NUM_KV_HEADS, KEY_DIM, VALUE_DIM, WINDOW, HAS_CAP, PAGE, TILE, BLOCK_KEY, BLOCK_VALUE, PRECISION, True,
    )  # fmt: skip
    found = found / tl.where(weight == 0.0, 1.0, weight)[:, None]
    places = (tokens * (NUM_KV_HEADS * GROUP) + head) * VALUE_DIM
    tl.store(
        out + places[:, None] + value_dims[None, :],
        found.to(out.dtype.element_ty),
        mask=(rows < size)[:, None] & (value_dims < VALUE_DIM)[None, :],
    )


@triton.jit
def _over_tiles(  # type: ignore[no-untyped-def]
    q, highest, weight, found, keys, values, table, begin, end, own, length, scale, cap,
    NUM_KV_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, BLOCK_KEY: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    PRECISION: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Go over positions ``begin`` to ``end``; the rows are at the positions ``own``."""
    key_dims = tl.arange(0, BLOCK_KEY)
    value_dims = tl.arange(0, BLOCK_VALUE)
    offsets = tl.arange(0, TILE)
    for first in range(begin, end, TILE):
        positions = first + offsets
        written = positions < length
        pages = tl.load(table + positions // PAGE, mask=written, other=0)
        slots = pages.to(tl.int64) * PAGE + positions % PAGE
        k = tl.load(
            keys + slots[:, None] * (NUM_KV_HEADS * KEY_DIM) + key_dims[None, :],
            mask=written[:, None] & (key_dims < KEY_DIM)[None, :],
            other=0.0,
        )
        v = tl.load(
            values + slots[:, None] * (NUM_KV_HEADS * VALUE_DIM) + value_dims[None, :],
            mask=written[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if HAS_CAP:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1)
            scores = cap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
        if IS_MASKED:
            seen = (positions[None, :] <= own[:, None]) & written[None, :]
            if WINDOW:
                seen = seen & (positions[None, :] > own[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # Of a tile before its window a row sees nothing; -inf - -inf would be no number.
        base = higher
        if WINDOW:
            base = tl.where(higher == float("-inf"), 0.0, higher)
        fade = tl.exp2(highest - base)
        chances = tl.exp2(scores - base[:, None])
        weight = weight * fade + tl.sum(chances, 1)
        found = tl.dot(chances.to(v.dtype), v, found * fade[:, None], input_precision=PRECISION)
        highest = higher
    return highest, weight, found
