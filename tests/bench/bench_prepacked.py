"""A decode step with weights that MKL packed once, against plain layers."""

from __future__ import annotations

import copy
import statistics

import torch

from tests.bench.models import as_loaded, random_llama
from tests.bench.steps import decode_step_s
from tests.bench.table import Row, median_and_range
from workers.model.runner import TorchRunner

ROUNDS = 7
COUNTS = (1, 4, 8, 16, 32, 64)


def rows() -> list[Row]:
    """Measure, interleaved, and return the table's rows."""
    return [*_shape(6, 512), *_shape(4, 2048)]


def _shape(layers: int, width: int) -> list[Row]:
    packed = random_llama(layers=layers, width=width)
    plain = copy.deepcopy(packed)
    runners = [
        TorchRunner(
            as_loaded(model, is_prepacked=model is packed), max_rows=max(COUNTS), kv_bytes=1 << 30,
            cpu_threads=torch.get_num_threads(),
        )
        for model in (packed, plain)
    ]  # fmt: skip
    found = []
    for count in COUNTS:
        pairs = [[decode_step_s(runner, count) for runner in runners] for _ in range(ROUNDS)]
        found.append(
            Row(
                what=f"decode step of {count} rows, Llama {layers} x {width}, fp32",
                against="plain layers",
                ratio=median_and_range([theirs / ours for ours, theirs in pairs]),
                goal="0.97x",
                note=f"{statistics.median(ours for ours, _ in pairs) * 1000:.1f} ms",
            )
        )
    return found
