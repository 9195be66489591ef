"""Which configuration of the int4 kernels computes how many rows of which shape fastest on this GPU.

Measured once per GPU and shape and kept in a file; a shape that was not measured takes a rule of thumb. Knows shapes
and configurations.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final, Protocol

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from workers.model.kernels.w4a16 import BLOCK, MAX_TILES, Config

log = logging.getLogger(__name__)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DENSE: Final = Config(kind="dense")
_PROGRAMS: Final = 528  # four for each of a Hopper's 132 multiprocessors
_MOST_SPLITS: Final = 16
_LEAST_DENSE: Final = 64  # rows
_LARGEST_ERROR: Final = 0.02  # of the largest number; bfloat16's own is a fifth of it
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
_FLUSH_BYTES: Final = 256 << 20  # what no second-level cache holds
_REPEATS: Final = 8

_chosen: dict[tuple[int, int, int, int], Config] = {}  # by inputs, outputs, group, bucket of rows
_counters: dict[torch.device, Tensor] = {}


class Measurable(Protocol):
    """A layer as `tune` needs it; see `gptq_triton`."""

    in_features: int
    out_features: int
    group: int

    @property
    def qweight(self) -> Tensor:
        """(B, O, 32) int32."""

    @property
    def bias(self) -> Tensor | None:
        """(O,)."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (O, I)."""

    def product(self, rows: Tensor, config: Config) -> Tensor:
        """(N, I) -> (N, O)."""


def counters(device: torch.device) -> Tensor:
    """Return the zeros that products with split inputs count in; one for all, as one runs at a time."""
    if device not in _counters:
        _counters[device] = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
    return _counters[device]


def choose(rows: int, inputs: int, outputs: int, group: int) -> Config:
    """Return the configuration for so many rows."""
    if rows > ROWS[-1]:
        return DENSE
    bucket = next(size for size in ROWS if size >= rows)
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
    """Measure the shapes of ``layers`` that this GPU has not seen. Does nothing on a CPU."""
    if not torch.cuda.is_available():
        return
    shapes = {(layer.in_features, layer.out_features, layer.group): layer for layer in layers}
    known = _read()
    machine = f"{torch.cuda.get_device_name()} torch {torch.__version__} triton {triton.__version__}"
    machine += f" {dtype} edition {_EDITION}"
    flush = torch.zeros(_FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    has_news = False
    for (inputs, outputs, group), layer in shapes.items():
        for bucket in ROWS:
            key = f"{machine} {inputs}x{outputs}/{group} {bucket}"
            if key not in known:
                known[key] = asdict(_measure(layer, bucket, flush, dtype))
                has_news = True
            _chosen[(inputs, outputs, group, bucket)] = Config(**known[key])  # type: ignore[arg-type]
    if has_news:
        _write(known)


@torch.inference_mode()
def _measure(layer: Measurable, bucket: int, flush: Tensor, dtype: torch.dtype) -> Config:
    x = torch.randn(bucket, layer.in_features, device=layer.qweight.device, dtype=dtype)
    expected = F.linear(x, layer.dense(dtype), layer.bias)
    times: list[tuple[float, Config]] = []
    for config in candidates(bucket, layer.in_features, layer.out_features):
        try:
            call = functools.partial(_product, layer, x, config)
            error = float((call() - expected).abs().max() / expected.abs().max())
            if not error < _LARGEST_ERROR:
                log.warning("%s for %d rows is wrong by %.3f; it is left out.", config, bucket, error)
                continue
            times.append((_seconds(call, flush), config))
        except Exception as error:  # a configuration that this GPU cannot hold
            log.info("%s for %d rows is left out: %s", config, bucket, error)
    seconds, best = min(times, key=lambda item: item[0], default=(0.0, DENSE))
    log.info("%dx%d, %d rows: %.1f us by %s", layer.in_features, layer.out_features, bucket, seconds * 1e6, best)
    return best


def _product(layer: Measurable, x: Tensor, config: Config) -> Tensor:
    if config.kind == "dense":
        return F.linear(x, layer.dense(x.dtype), layer.bias)
    return layer.product(x, config)


def _seconds(call: Callable[[], object], flush: Tensor) -> float:
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_REPEATS)]
    for begin, end in marks:
        # Read, not written: what is written would still be on its way to memory. It also hides the launch.
        flush.sum()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in marks)[_REPEATS // 2] / 1e3


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
