"""The small steps between the products, each in one kernel: root-mean-square norm, gate, rotary positions.

transformers computes each of them in 3 to 10 kernels. At a decode step of few rows a kernel costs 2-3 us whatever it
does, so they take longer than reading the weights. Rounding follows transformers: statistics in float32, the
normalised value rounded to the input's type before its weight is applied.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROW_WARPS = 8


# N rows, W width, T tokens, H heads, D head dim
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``weight * x / rms(x)`` over the last dim of ``x`` (..., W), in the type of ``x``."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    out = torch.empty_like(rows)
    block = triton.next_power_of_2(width)
    warps = _ROW_WARPS if block >= 2048 else 1 if block <= 256 else 4
    _rms_norm[(rows.shape[0],)](rows, weight, out, rows.stride(0), width, eps, BLOCK=block, num_warps=warps)
    return out.view(x.shape)


def silu_gate(both: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` (..., W) of ``both`` (..., 2 W): gate first, then up."""
    width = both.shape[-1] // 2
    rows = both.reshape(-1, 2 * width)
    out = torch.empty(rows.shape[0], width, dtype=both.dtype, device=both.device)
    block = 1024
    _silu_gate[(rows.shape[0], triton.cdiv(width, block))](rows, out, width, BLOCK=block, num_warps=4)
    return out.view(*both.shape[:-1], width)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotated query (1, H, T, D) and key (1, K, T, D), strides as they came; cos and sin (1, T, D)."""
    _, heads, num_tokens, dim = query.shape
    kv_heads = key.shape[1]
    # As (1, T, H, D) in memory, which is what the projections gave.
    new_query = torch.empty(1, num_tokens, heads, dim, dtype=query.dtype, device=query.device).transpose(1, 2)
    new_key = torch.empty(1, num_tokens, kv_heads, dim, dtype=key.dtype, device=key.device).transpose(1, 2)
    half = dim // 2
    _rotate[(num_tokens, heads + kv_heads)](
        query, key, cos, sin, new_query, new_key, heads, half,
        query.stride(1), query.stride(2), key.stride(1), key.stride(2), cos.stride(1), sin.stride(1),
        new_query.stride(1), new_query.stride(2), new_key.stride(1), new_key.stride(2),
        BLOCK=triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return new_query, new_key


@triton.jit
def _rms_norm(x, weight, out, stride, width, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    given = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    wide = given.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    normal = (wide * scale).to(given.dtype)
    factor = tl.load(weight + columns, mask=inside, other=0.0)
    # In float32, as a product of two bfloat16 is exact there and rounds once.
    product = normal.to(tl.float32) * factor.to(tl.float32)
    tl.store(out + row * width + columns, product.to(given.dtype), mask=inside)


@triton.jit
def _silu_gate(both, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(both + row * 2 * width + columns, mask=inside, other=0.0)
    up = tl.load(both + row * 2 * width + width + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = activated.to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * width + columns, product.to(gate.dtype), mask=inside)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    query, key, cos, sin, new_query, new_key, heads, half,
    q_head, q_token, k_head, k_token, cos_token, sin_token, nq_head, nq_token, nk_head, nk_token,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < half
    if head < heads:
        source, target = query + head * q_head + token * q_token, new_query + head * nq_head + token * nq_token
    else:
        source = key + (head - heads) * k_head + token * k_token
        target = new_key + (head - heads) * nk_head + token * nk_token
    given = tl.load(source + columns, mask=inside, other=0.0)
    first = given.to(tl.float32)
    second = tl.load(source + half + columns, mask=inside, other=0.0).to(tl.float32)
    cos_first = tl.load(cos + token * cos_token + columns, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + token * cos_token + half + columns, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + token * sin_token + columns, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + token * sin_token + half + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + columns, (first * cos_first - second * sin_first).to(given.dtype), mask=inside)
    tl.store(target + half + columns, (second * cos_second + first * sin_second).to(given.dtype), mask=inside)
