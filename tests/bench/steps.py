"""One decode step of so many rows, timed."""

from __future__ import annotations

import statistics
import time

from chatproject.contract.messages import SamplingParams
from workers.engine.interfaces import BLOCK_TOKENS, Row
from workers.model.runner import TorchRunner

STEPS, CONTEXT = 6, 128
GREEDY = SamplingParams(temperature=0.0)


def decode_step_s(runner: TorchRunner, count: int) -> float:
    """Return the median seconds of a decode step of ``count`` rows after ``CONTEXT`` tokens."""
    per_row = -(-(CONTEXT + STEPS) // BLOCK_TOKENS)
    tables = [tuple(range(index * per_row, (index + 1) * per_row)) for index in range(count)]
    times = []
    for step in range(STEPS):
        batch = [
            Row(sequence_id=str(i), tokens=(7 + i,), start=CONTEXT - 1 + step, block_table=table, sampling=GREEDY)
            for i, table in enumerate(tables)
        ]
        began = time.perf_counter()
        runner.step(batch)
        if step > 1:  # The first copies the context, the second makes it room.
            times.append(time.perf_counter() - began)
    return statistics.median(times)
