"""Products of 16-bit rows with 4-bit weights, in Triton.

Knows packed tensors and how to launch; which configuration suits which shape is `triton_choice`'s.

Layout. Inputs come in blocks of 256. ``qweight`` is (B, O, 32) int32: the integer ``[b, o, r]`` holds the weights of
output ``o`` for the inputs ``256 b + 32 s + r``, ``s`` = 0..7, lowest bits first. So what one program reads lies in one
piece, and eight shifts of one tile give eight tiles that multiply 32 neighbouring inputs each, with nothing moved
between threads. ``scaling`` is (G, O) int32: a 16-bit float scale below, the zero (0..15) above; it has a row for every
group of the last block, whether there are inputs or not.

The tensor cores get ``y.T = W x.T``: the weights, as the left operand, go from shared memory to registers as integers
and become floats there. The float is made by setting the integer into the mantissa of 128 (bfloat16) or 1024 (float16);
a conversion instruction would take longer than reading the weight from memory.

Splitting the inputs over programs keeps one order of sums: every program leaves its part in a buffer, and the last to
come adds all in order. A row's result depends on nothing but the row and the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK: Final = 256  # inputs
LANES: Final = 32  # integers of one output in a block
MAX_TILES: Final = 4096  # of a product whose inputs are split; each has a counter
# 2^23, into which the vector kernel sets integers. An argument, since the assembler joins an "and" and an "or" into one
# instruction only where no more than one of them has a constant.
_VECTOR_MAGIC: Final = 0x4B000000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How to launch a product. *vector* takes one row and no tensor cores; *dense* unpacks the weights first.

    *vendor* is no kernel of ours: of the rest, ``rows`` alone counts, the most that it takes.
    """

    kind: Literal["tile", "vector", "dense", "vendor"]
    rows: int = 16  # of a program, a power of 2
    outputs: int = 64  # of a program, a power of 2
    splits: int = 1  # of the inputs
    warps: int = 4
    stages: int = 3


# N rows, I inputs, O outputs, G groups, B blocks of inputs
def matmul(
    x: Tensor,
    qweight: Tensor,
    scaling: Tensor,
    bias: Tensor | None,
    counters: Tensor,
    *,
    group: int,
    is_bfloat16_scale: bool,
    config: Config,
) -> Tensor:
    """(N, I) -> (N, O) in the type of ``x``, whose rows lie side by side.

    ``counters`` is (MAX_TILES,) int32 of zeros, and zeros again afterwards; no two products may use it at a time.
    ``group`` divides 256 or is a multiple of it.
    """
    num_rows, num_inputs = x.shape
    num_blocks, num_outputs, _ = qweight.shape
    y = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    rows = 1 if config.kind == "vector" else config.rows
    tiles_m, tiles_n = triton.cdiv(num_rows, rows), triton.cdiv(num_outputs, config.outputs)
    # Only split products count their tiles.
    splits = min(config.splits, num_blocks) if tiles_m * tiles_n <= MAX_TILES else 1
    if splits > 1:
        parts = torch.empty(tiles_m * tiles_n * splits * rows * config.outputs, dtype=torch.float32, device=x.device)
    else:
        parts = counters.view(torch.float32)  # not used; of the same type, so that it is the same kernel
    where = (x, qweight, scaling, y if bias is None else bias, y, parts, counters)
    sizes = (num_rows, num_inputs, num_outputs, num_blocks, splits, int(bias is not None))
    how = {
        "GROUP": group, "BFLOAT16_SCALE": is_bfloat16_scale, "IS_RAGGED": num_inputs % BLOCK != 0,
        "STAGES": config.stages, "OUTPUTS": config.outputs, "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip
    grid = (tiles_m, tiles_n, splits)
    if config.kind == "vector":
        _vector_kernel[grid](*where, *sizes, _VECTOR_MAGIC, **how)
    else:
        _tile_kernel[grid](*where, *sizes, ROWS=rows, ASSEMBLY=_has_assembly(x), **how)
    return y


def dequantise(qweight: Tensor, scaling: Tensor, out: Tensor, *, group: int, is_bfloat16_scale: bool) -> Tensor:
    """Fill ``out`` (O, I) with the weights, as a dense Linear has them; computed in float32, then rounded."""
    num_blocks, num_outputs, _ = qweight.shape
    outputs = 32
    _dequantise_kernel[(num_blocks, triton.cdiv(num_outputs, outputs))](
        qweight, scaling, out, out.shape[1], num_outputs,
        GROUP=group, BFLOAT16_SCALE=is_bfloat16_scale, OUTPUTS=outputs, num_warps=4,
    )  # fmt: skip
    return out


def _has_assembly(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and x.dtype != torch.float32


@triton.jit
def _scale_and_zero(scaling, group, n, num_outputs, BFLOAT16_SCALE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(OUTPUTS,) float32 and int32."""
    both = tl.load(scaling + group * num_outputs + n, mask=n < num_outputs, other=0)
    bits = both.to(tl.int16)
    if BFLOAT16_SCALE:
        scale = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        scale = bits.to(tl.float16, bitcast=True).to(tl.float32)
    return scale, (both >> 16) & 0xF


@triton.jit
def _group_of(block, j: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the group of the ``j``-th run of inputs with one scale in the block."""
    if GROUP >= 256:
        return block // (GROUP // 256)
    else:
        return block * (256 // GROUP) + j


@triton.jit
def _finish(acc, total_at, idx, parts, counters, tile, split, splits,  # type: ignore[no-untyped-def]
            bias, y, m, n, mask, num_outputs, has_bias):  # fmt: skip
    """Store the tile, or leave this program's part of it and store the sum when the other parts are there."""
    # Conditions of the run, not of the compilation: fewer kernels to compile.
    is_last = splits == 1
    if splits > 1:
        tl.store(parts + (tile * splits + split) * total_at + idx, acc)
        # Every thread's part must be written before one thread tells of it.
        tl.debug_barrier()
        is_last = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu") == splits - 1
    if is_last:
        if splits > 1:
            acc = tl.zeros_like(acc)
            for i in range(splits):
                # From the second-level cache: the first level is each multiprocessor's own.
                acc += tl.load(parts + (tile * splits + i) * total_at + idx, cache_modifier=".cg")
            tl.store(counters + tile, 0)
        if has_bias != 0:
            acc += tl.load(bias + n, mask=n < num_outputs, other=0.0).to(tl.float32)
        tl.store(y + m * num_outputs + n, acc.to(y.dtype.element_ty), mask=mask)


@triton.constexpr_function
def _unpacking(s: int, magic: int) -> str:
    """Return instructions that set the ``s``-th weights of two integers into the mantissas of 128 or 1024.

    Written by hand since the compiler takes twice as many, and they are what limits the product of few rows. The two
    halves are brought together once for four of ``s``; then each ``s`` is a shift, and an "and" and "or" in one.
    """
    halves = "0x5410" if s < 4 else "0x7632"
    return (
        "{ .reg .b32 both; "
        f"prmt.b32 both, $1, $2, {halves}; "
        f"shr.u32 both, both, {4 * (s % 4)}; "
        f"lop3.b32 $0, both, 0x000F000F, {magic * 0x10001:#x}, 0xEA; }}"
    )


@triton.jit
def _weights(packed, zero, s: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the weights of the inputs ``32 s + r`` of a block, less their zero: (OUTPUTS, 32)."""
    if ASSEMBLY:
        MAGIC: tl.constexpr = 0x4300 if tl.bfloat16 == DTYPE else 0x6400
        raised = tl.inline_asm_elementwise(
            _unpacking(s, MAGIC), "=r,r,r", [packed], dtype=tl.int16, is_pure=True, pack=2
        )
        one = (zero | MAGIC).to(tl.int16).to(DTYPE, bitcast=True)
        return raised.to(DTYPE, bitcast=True) - one[:, None]
    else:
        return (((packed >> (4 * s)) & 0xF) - zero[:, None]).to(tl.float32).to(DTYPE)


@triton.jit
def _scaled(packed, upper, zero, magic, row_at, at, r, num_inputs, s: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the products of one row with the weights of the inputs ``at + r``: (OUTPUTS, 32) float32."""
    # Left in its place, the weight counts 16^(s % 4) times; the input is divided by it. All exact.
    AT: tl.constexpr = 4 * (s % 4)
    half = packed
    if s >= 4:
        half = upper
    one = ((zero << AT) | magic).to(tl.float32, bitcast=True)  # 2^23 + zero
    weights = ((half & (0xF << AT)) | magic).to(tl.float32, bitcast=True) - one[:, None]
    inputs = tl.load(row_at + at, mask=at + r < num_inputs, other=0.0).to(tl.float32) * (1.0 / (1 << AT))
    return weights * inputs[None, :]


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "splits", "has_bias"])
def _tile_kernel(x, qweight, scaling, bias, y, parts, counters,  # type: ignore[no-untyped-def]
                 num_rows, num_inputs, num_outputs, num_blocks, splits, has_bias,
                 GROUP: tl.constexpr, BFLOAT16_SCALE: tl.constexpr, IS_RAGGED: tl.constexpr, STAGES: tl.constexpr,
                 OUTPUTS: tl.constexpr, ROWS: tl.constexpr, ASSEMBLY: tl.constexpr):  # fmt: skip
    # Rows are the fastest axis of the grid: programs that share weights run side by side.
    tile_m, tile_n, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tile_n * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tile_m * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, 32)
    RUNS: tl.constexpr = 1 if GROUP >= 256 else 256 // GROUP
    DTYPE: tl.constexpr = x.dtype.element_ty
    weights_at = qweight + n[:, None] * 32 + r[None, :]
    rows_at = x + m[None, :] * num_inputs + r[:, None]
    is_output = n[:, None] < num_outputs
    is_row = m[None, :] < num_rows
    acc = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    first = split * num_blocks // splits
    last = (split + 1) * num_blocks // splits
    for block in tl.range(first, last, num_stages=STAGES):
        packed = tl.load(weights_at + block * num_outputs * 32, mask=is_output, other=0)  # (OUTPUTS, 32)
        for j in tl.static_range(RUNS):
            scale, zero = _scale_and_zero(scaling, _group_of(block, j, GROUP), n, num_outputs, BFLOAT16_SCALE)
            part = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
            for i in tl.static_range(8 // RUNS):
                weights = _weights(packed, zero, j * (8 // RUNS) + i, DTYPE, ASSEMBLY)
                mask = is_row
                if IS_RAGGED:
                    mask = is_row & ((block * 256 + (j * (8 // RUNS) + i) * 32 + r)[:, None] < num_inputs)
                columns = tl.load(rows_at + (block * 256 + (j * (8 // RUNS) + i) * 32), mask=mask, other=0.0)
                part = tl.dot(weights, columns, part, input_precision="ieee")
            acc += part * scale[:, None]
    tile = tile_n * tl.num_programs(0) + tile_m
    idx = tl.arange(0, OUTPUTS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    _finish(acc, OUTPUTS * ROWS, idx, parts, counters, tile, split, splits,
            bias, y, m[None, :], n[:, None], is_output & is_row, num_outputs, has_bias)  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "splits", "has_bias", "magic"])
def _vector_kernel(x, qweight, scaling, bias, y, parts, counters,  # type: ignore[no-untyped-def]
                   num_rows, num_inputs, num_outputs, num_blocks, splits, has_bias, magic,
                   GROUP: tl.constexpr, BFLOAT16_SCALE: tl.constexpr, IS_RAGGED: tl.constexpr, STAGES: tl.constexpr,
                   OUTPUTS: tl.constexpr):  # fmt: skip
    tile_m, tile_n, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tile_n * OUTPUTS + tl.arange(0, OUTPUTS)
    r = tl.arange(0, 32)
    RUNS: tl.constexpr = 1 if GROUP >= 256 else 256 // GROUP
    weights_at = qweight + n[:, None] * 32 + r[None, :]
    row_at = x + tile_m * num_inputs + r
    is_output = n[:, None] < num_outputs
    acc = tl.zeros((OUTPUTS, 32), dtype=tl.float32)
    first = split * num_blocks // splits
    last = (split + 1) * num_blocks // splits
    for block in tl.range(first, last, num_stages=STAGES):
        packed = tl.load(weights_at + block * num_outputs * 32, mask=is_output, other=0)  # (OUTPUTS, 32)
        upper = packed >> 16
        for j in tl.static_range(RUNS):
            scale, zero = _scale_and_zero(scaling, _group_of(block, j, GROUP), n, num_outputs, BFLOAT16_SCALE)
            part = tl.zeros((OUTPUTS, 32), dtype=tl.float32)
            for i in tl.static_range(8 // RUNS):
                part += _scaled(
                    packed,
                    upper,
                    zero,
                    magic,
                    row_at,
                    block * 256 + (j * (8 // RUNS) + i) * 32,
                    r,
                    num_inputs,
                    j * (8 // RUNS) + i,
                )
            acc += part * scale[:, None]
    tile = tile_n * tl.num_programs(0) + tile_m
    _finish(tl.sum(acc, axis=1), OUTPUTS, tl.arange(0, OUTPUTS), parts, counters, tile, split, splits,
            bias, y, tile_m, n, n < num_outputs, num_outputs, has_bias)  # fmt: skip


@triton.jit
def _dequantise_kernel(qweight, scaling, out, num_inputs, num_outputs,  # type: ignore[no-untyped-def]
                       GROUP: tl.constexpr, BFLOAT16_SCALE: tl.constexpr,
                       OUTPUTS: tl.constexpr):  # fmt: skip
    block = tl.program_id(0)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    r = tl.arange(0, 32)
    RUNS: tl.constexpr = 1 if GROUP >= 256 else 256 // GROUP
    is_output = n[:, None] < num_outputs
    packed = tl.load(qweight + (block * num_outputs + n[:, None]) * 32 + r[None, :], mask=is_output, other=0)
    for s in tl.static_range(8):
        scale, zero = _scale_and_zero(
            scaling, _group_of(block, s // (8 // RUNS), GROUP), n, num_outputs, BFLOAT16_SCALE
        )
        weights = (((packed >> (4 * s)) & 0xF) - zero[:, None]).to(tl.float32) * scale[:, None]
        k = (block * 256 + s * 32 + r)[None, :]
        # 64-bit: a dense layer of a large model has more elements than half of 2^32.
        at = n[:, None].to(tl.int64) * num_inputs + k
        tl.store(out + at, weights.to(out.dtype.element_ty), mask=is_output & (k < num_inputs))
