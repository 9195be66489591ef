"""Measure, once per machine and shape, up to how many rows the int4 kernel beats the dense product on this CPU.

A measurement takes a fraction of a second and is kept in a file, since it depends on the CPU, torch and the number of
threads alone. A file that cannot be read or written costs the measurement again, nothing else.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import nn

from workers.model.gptq import GPTQTensors
from workers.model.gptq_int4 import Int4Linear
from workers.model.prepacked import prepack

log = logging.getLogger(__name__)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
_LEAST_GAIN = 0.97  # of the dense layer's time; what is no gain is not worth the rounding
_ROUNDS = 7
_KEPT_BYTES = 256 << 20


def few_rows(tensors: GPTQTensors, dense: nn.Linear) -> int:
    """Return the most rows at which this layer is faster by integers than packed, 0 when it never is."""
    groups = f"{tensors.scales.shape[0]}{'p' if _is_permuted(tensors) else ''}"
    shape = f"{dense.in_features}x{dense.out_features}/{groups}"
    key = f"{_machine()} {shape}"
    known = _read()
    if key not in known:
        known[key] = _measure(tensors, dense)
        log.info("int4 kernel for %s: up to %d rows.", shape, known[key])
        _write(known)
    return known[key]


def _measure(tensors: GPTQTensors, dense: nn.Linear) -> int:
    # As many copies as do not fit the caches: in a model a layer's weights come from memory each time.
    weight = dense.weight
    copies = max(2, min(16, _KEPT_BYTES // (weight.numel() * weight.element_size())))
    layers = [Int4Linear(tensors, few_rows=0, dense=None, dtype=weight.dtype) for _ in range(copies)]
    others = [prepack(copy.deepcopy(dense)) for _ in range(copies)]
    best = 0
    with torch.inference_mode():
        for rows in ROWS:
            x = torch.randn(rows, dense.in_features, dtype=weight.dtype)
            ratios = [
                _seconds(lambda i: layers[i](x), copies)  # noqa: B023 called before x changes
                / _seconds(lambda i: others[i](x), copies)  # noqa: B023
                for _ in range(_ROUNDS)
            ]
            if statistics.median(ratios) > _LEAST_GAIN:
                break
            best = rows
    return best


def _seconds(call: Callable[[int], object], copies: int) -> float:
    began = time.perf_counter()
    for index in range(copies):
        call(index)
    return time.perf_counter() - began


def _is_permuted(tensors: GPTQTensors) -> bool:
    return bool((tensors.g_idx.diff() < 0).any())


def _machine() -> str:
    return f"{platform.machine()} {_cpu_name()} torch {torch.__version__} threads {torch.get_num_threads()}"


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")


def _path() -> Path:
    return Path("~/.cache/chatproject/int4_rows_3.json").expanduser()


def _read() -> dict[str, int]:
    try:
        known = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    if not isinstance(known, dict):
        return {}
    return {str(key): rows for key, rows in known.items() if isinstance(rows, int)}


def _write(known: dict[str, int]) -> None:
    try:
        path = _path()
        partial = path.with_suffix(f".{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        log.info("The measurement is not kept: %s", error)
