"""A decode step of a quantised model with the backend that is chosen on this machine, against the dense layers."""

from __future__ import annotations

import copy
import statistics

import torch

from tests.bench.models import as_loaded, quantise, random_llama
from tests.bench.steps import decode_step_s
from tests.bench.table import Row, median_and_range
from workers.model.gptq_int4 import Int4Linear
from workers.model.runner import TorchRunner

ROUNDS = 7
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def rows() -> list[Row]:
    """Measure, interleaved, and return the table's rows."""
    plain = random_llama(layers=4, width=2048)
    models = {"dense": copy.deepcopy(plain), "auto": plain}
    for backend, model in models.items():
        quantise(model, "dense" if backend == "dense" else "auto")
    extra = sum(
        buffer.numel() * buffer.element_size()
        for module in models["auto"].modules()
        if isinstance(module, Int4Linear)
        for buffer in (module.integers, module.scales_and_zeros)
    )
    dense = sum(p.numel() * p.element_size() for p in models["dense"].model.layers.parameters())
    chosen = sorted({m.few_rows for m in models["auto"].modules() if isinstance(m, Int4Linear)})
    runners = {
        backend: TorchRunner(
            as_loaded(model), max_rows=max(COUNTS), kv_bytes=1 << 30, cpu_threads=torch.get_num_threads()
        )
        for backend, model in models.items()
    }
    found = []
    for count in COUNTS:
        ratios, steps_ms = [], []
        for _ in range(ROUNDS):
            ours, theirs = decode_step_s(runners["auto"], count), decode_step_s(runners["dense"], count)
            ratios.append(theirs / ours)
            steps_ms.append(ours * 1000)
        found.append(
            Row(
                what=f"decode step of {count} rows, GPTQ int4 4 x 2048",
                against="our dense layers",
                ratio=median_and_range(ratios),
                goal="2x" if count <= 4 else "0.97x",
                note=f"{statistics.median(steps_ms):.1f} ms; int4 up to {chosen} rows; integers {extra >> 20} MiB "
                f"beside {dense >> 20} MiB dense",
            )
        )
    return found
