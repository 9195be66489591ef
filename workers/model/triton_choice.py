"""Which configuration of the int4 kernels computes how many rows of which shape fastest on this GPU.

Measured once per GPU and shape and kept in a file; a shape that was not measured takes a rule of thumb. The kernels of
a vendor's package compete where it is installed. They need the weights a second time, in a layout of their own, so a
shape gets them only for a clear gain over all numbers of rows. Knows shapes and configurations.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from workers.model import triton_timing, vendor_int4
from workers.model.kernels.w4a16 import BLOCK, MAX_TILES, Config
from workers.model.triton_timing import LARGEST_ERROR, Measurable

log = logging.getLogger(__name__)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DENSE: Final = Config(kind="dense")
_PROGRAMS: Final = 528  # four for each of a Hopper's 132 multiprocessors
_MOST_SPLITS: Final = 16
_LEAST_DENSE: Final = 64  # rows
_MOST_TIME: Final = 0.95  # of ours, in the mean over ROWS, for which a vendor's copy of the weights is worth its memory
_EDITION: Final = 1  # of the kernels; another one makes the file's measurements void

# By the rows of a program: (outputs, warps, stages) of the programs, and how many of them the GPU should have at least.
# The first of a line is the rule of thumb. The more rows, the more outputs must share the reading of the rows, which
# come from the second-level cache.
_TILES: Final[dict[int, list[tuple[tuple[int, int, int], int]]]] = {
    8: [((64, 4, 4), 528), ((32, 2, 4), 1056), ((128, 4, 3), 264)],
    16: [((64, 4, 4), 396), ((32, 2, 4), 792), ((128, 8, 3), 264)],
    32: [((64, 4, 3), 396), ((128, 8, 3), 264)],
    64: [((128, 8, 2), 132), ((64, 4, 2), 264)],
    128: [((128, 8, 2), 132)],
}

_Shape = tuple[int, int, int]  # inputs, outputs, group

_chosen: dict[tuple[int, int, int, int], Config] = {}  # by inputs, outputs, group, bucket of rows
_vendors: dict[_Shape, frozenset[int]] = {}  # the buckets in which a vendor's kernels are faster
_counters: dict[torch.device, Tensor] = {}


def counters(device: torch.device) -> Tensor:
    """Return the zeros that products with split inputs count in; one for all, as one runs at a time."""
    if device not in _counters:
        _counters[device] = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
    return _counters[device]


def choose(rows: int, inputs: int, outputs: int, group: int, *, has_vendor: bool = False) -> Config:
    """Return the configuration for so many rows of a layer, which may have a vendor's kernels beside ours."""
    if rows > ROWS[-1]:
        return DENSE
    bucket = next(size for size in ROWS if size >= rows)
    if has_vendor and bucket in _vendors.get((inputs, outputs, group), ()):
        return _vendor(bucket)
    key = (inputs, outputs, group, bucket)
    if key not in _chosen:
        _chosen[key] = default(bucket, inputs, outputs)
    return _chosen[key]


def default(bucket: int, inputs: int, outputs: int) -> Config:
    """Return the rule of thumb: enough programs for the GPU, as few parts to sum as that allows."""
    shape, programs = _TILES[_tile_rows(bucket)][0]
    return _tile(bucket, inputs, outputs, shape, programs)


def candidates(bucket: int, inputs: int, outputs: int) -> list[Config]:
    """Return what is worth measuring, the rule of thumb first."""
    found = [default(bucket, inputs, outputs)]
    for shape, programs in _TILES[_tile_rows(bucket)]:
        found += [_tile(bucket, inputs, outputs, shape, few) for few in (programs, programs // 2, programs * 2)]
    if bucket == 1:
        splits = _splits(inputs, outputs, 64, 1, _PROGRAMS)
        found.append(Config(kind="vector", outputs=64, splits=splits, warps=4, stages=3))
    if bucket >= _LEAST_DENSE:
        found.append(DENSE)
    return list(dict.fromkeys(found))


def _tile_rows(bucket: int) -> int:
    return next((rows for rows in _TILES if rows >= bucket), max(_TILES))


def _tile(bucket: int, inputs: int, outputs: int, shape: tuple[int, int, int], programs: int) -> Config:
    width, warps, stages = shape
    rows = _tile_rows(bucket)
    splits = _splits(inputs, outputs, width, -(-bucket // rows), programs)
    return Config(kind="tile", rows=rows, outputs=width, splits=splits, warps=warps, stages=stages)


def _splits(inputs: int, outputs: int, width: int, tiles: int, programs: int) -> int:
    blocks = -(-inputs // BLOCK)
    wanted = max(1, round(programs / (tiles * -(-outputs // width))))
    each = -(-blocks // min(wanted, blocks, _MOST_SPLITS))
    return -(-blocks // each)  # The longest part is what one waits for.


def tune(layers: Iterable[Measurable], dtype: torch.dtype = torch.bfloat16) -> None:
    """Measure the shapes of ``layers`` that this GPU has not seen, and give them a vendor's kernels where these gain.

    Call after layers are joined. Does nothing on a CPU.
    """
    if not torch.cuda.is_available():
        return
    shapes: dict[_Shape, list[Measurable]] = {}
    for layer in layers:
        shapes.setdefault((layer.in_features, layer.out_features, layer.group), []).append(layer)
    if not shapes:
        return
    known = _read()
    num_known = len(known)
    machine = f"{torch.cuda.get_device_name()} torch {torch.__version__} triton {triton.__version__}"
    machine += f" {dtype} edition {_EDITION}"
    vendor = vendor_int4.version()
    device = next(iter(shapes.values()))[0].qweight.device
    flush = triton_timing.make_flush(device)
    for shape, alike in shapes.items():
        inputs, outputs, group = shape
        for bucket in ROWS:
            key = f"{machine} {inputs}x{outputs}/{group} {bucket}"
            if key not in known:
                known[key] = asdict(_measure(alike[0], bucket, flush, dtype))
            _chosen[(*shape, bucket)] = Config(**known[key])  # type: ignore[arg-type]
        _vendors.pop(shape, None)
        if vendor is not None:
            key = f"{machine} vendor {vendor} {inputs}x{outputs}/{group}"
            if key not in known and (won := _buckets_won(alike[0], shape, flush, dtype)) is not None:
                known[key] = {"buckets": won}
            buckets: list[int] = known.get(key, {}).get("buckets", [])  # type: ignore[assignment]
            if buckets:
                _adopt(alike, buckets, dtype)
                _vendors[shape] = frozenset(buckets)
    if len(known) != num_known:
        _write(known)
    torch.cuda.empty_cache()  # What was measured must not be missing for the KV cache.


@torch.inference_mode()
def _measure(layer: Measurable, bucket: int, flush: Tensor, dtype: torch.dtype) -> Config:
    times = triton_timing.times(layer, bucket, candidates(bucket, layer.in_features, layer.out_features), flush, dtype)
    best = min(times, key=times.__getitem__, default=DENSE)
    seconds = times.get(best, 0.0)
    log.info("%dx%d, %d rows: %.1f us by %s", layer.in_features, layer.out_features, bucket, seconds * 1e6, best)
    return best


def _buckets_won(layer: Measurable, shape: _Shape, flush: Tensor, dtype: torch.dtype) -> list[int] | None:
    """Return the buckets in which a vendor's kernels are faster; none where they gain too little over all.

    None where they compute nothing right, which may be for want of memory or a compiler and is tried again.
    """
    won: list[int] = []
    parts: list[float] = []  # of our time
    try:
        layer.vendor = layer.for_vendor(dtype)
        for bucket in ROWS:
            ours, theirs = _chosen[(*shape, bucket)], _vendor(bucket)
            times = triton_timing.times(layer, bucket, (ours, theirs), flush, dtype)
            if len(times) == 2:
                parts.append(min(times[theirs] / times[ours], 1.0))
            if times.get(theirs, math.inf) < times.get(ours, math.inf):
                won.append(bucket)
    except Exception as error:
        log.warning("The vendor's kernels do not take %dx%d: %s", shape[0], shape[1], error)
        return None
    finally:
        layer.vendor = None
    if not parts:
        log.warning("The vendor's kernels compute nothing of %dx%d; ours do.", shape[0], shape[1])
        return None
    mean = (sum(parts) + len(ROWS) - len(parts)) / len(ROWS)
    log.info("%dx%d: the vendor's kernels win at %s rows, %.3f of our time in the mean.", *shape[:2], won, mean)
    return won if mean <= _MOST_TIME else []


def _adopt(layers: Iterable[Measurable], buckets: list[int], dtype: torch.dtype) -> None:
    """Give each layer a vendor's kernels, unless what these compute for it is wrong; compile and load them."""
    for layer in layers:
        try:
            layer.vendor = layer.for_vendor(dtype)
            error = _largest_error(layer, buckets, dtype)
        except Exception as failure:
            log.warning("A layer keeps our kernels; the vendor's fail: %s", failure)
            layer.vendor = None
            continue
        if not error < LARGEST_ERROR:
            log.warning("A layer keeps our kernels: the vendor's are wrong by %.3f.", error)
            layer.vendor = None


@torch.inference_mode()
def _largest_error(layer: Measurable, buckets: list[int], dtype: torch.dtype) -> float:
    """Return it over the most and the fewest rows of each bucket, not a number if one is none."""
    x = torch.randn(buckets[-1], layer.in_features, device=layer.qweight.device, dtype=dtype)
    expected = F.linear(x, layer.dense(dtype), layer.bias)
    errors = [
        triton_timing.error_of(triton_timing.product(layer, x[:rows], _vendor(bucket)), expected[:rows])
        for bucket in buckets
        for rows in {bucket, bucket // 2 + 1}
    ]
    return next((error for error in errors if not error < LARGEST_ERROR), max(errors))


def _vendor(bucket: int) -> Config:
    return Config(kind="vendor", rows=bucket)


def _path() -> Path:
    return Path("~/.cache/chatproject/triton_int4.json").expanduser()


def _read() -> dict[str, dict[str, object]]:
    try:
        known = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, dict[str, object]]) -> None:
    try:
        path = _path()
        partial = path.with_suffix(f".{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        log.info("The measurement is not kept: %s", error)
