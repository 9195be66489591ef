"""Write a step's keys and values of one layer to their places in the paged cache, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# T tokens, K kv heads, D key dim, V value dim
def cache_write(
    keys: Tensor,  # (T, K, D) any strides
    values: Tensor,  # (T, K, V)
    slots: Tensor,  # (T,) int64; below 0: written nowhere
    cached_keys: Tensor,  # (slots, K, D)
    cached_values: Tensor,  # (slots, K, V)
) -> None:
    """Store each token's keys and values at its slot."""
    num_tokens, num_kv_heads, key_dim = keys.shape
    value_dim = values.shape[2]
    assert cached_keys.shape[1:] == keys.shape[1:]
    assert cached_values.shape[1:] == values.shape[1:]
    assert cached_keys.is_contiguous()
    assert cached_values.is_contiguous()
    assert slots.dtype == torch.int64
    assert slots.shape == (num_tokens,)
    assert slots.is_contiguous()
    keys = keys if keys.stride(2) == 1 else keys.contiguous()
    values = values if values.stride(2) == 1 else values.contiguous()
    block = triton.next_power_of_2(num_kv_heads * max(key_dim, value_dim))
    _write[(num_tokens,)](
        keys, values, slots, cached_keys, cached_values,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        NUM_KV_HEADS=num_kv_heads, KEY_DIM=key_dim, VALUE_DIM=value_dim, BLOCK=block,
        num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip


@triton.jit
def _write(  # type: ignore[no-untyped-def]
    keys, values, slots, cached_keys, cached_values, key_token, key_head, value_token, value_head,
    NUM_KV_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    places = tl.arange(0, BLOCK)
    of_key = (places < NUM_KV_HEADS * KEY_DIM) & (slot >= 0)
    key = tl.load(keys + token * key_token + places // KEY_DIM * key_head + places % KEY_DIM, mask=of_key)
    tl.store(cached_keys + slot * (NUM_KV_HEADS * KEY_DIM) + places, key, mask=of_key)
    of_value = (places < NUM_KV_HEADS * VALUE_DIM) & (slot >= 0)
    value = tl.load(values + token * value_token + places // VALUE_DIM * value_head + places % VALUE_DIM, mask=of_value)
    tl.store(cached_values + slot * (NUM_KV_HEADS * VALUE_DIM) + places, value, mask=of_value)
