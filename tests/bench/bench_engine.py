"""Time outside the model: what scheduling, paging and bookkeeping cost per step, against the goal of 0.25 ms."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from chatproject.contract.messages import SamplingParams
from tests.bench.mixed import InstantRunner
from tests.bench.table import Row
from workers.engine.engine import Engine
from workers.engine.interfaces import Piece, SequenceRequest, StepOutput

GOAL_MS, ROWS, STEPS, ROUNDS = 0.25, 32, 400, 5


class _NoText:
    def push(self, token: int) -> Piece:
        return Piece(text="a")

    def flush(self) -> str:
        return ""


class _Deaf:
    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        return None


def rows() -> list[Row]:
    """Measure and return the table's rows."""
    medians = []
    for _ in range(ROUNDS):
        engine = Engine(InstantRunner(), listener=_Deaf(), step_tokens=1024)
        for index in range(ROWS):
            engine.add(
                SequenceRequest(
                    sequence_id=str(index),
                    prompt=(1,) * 20,
                    text=_NoText(),
                    user_id=str(index),
                    sampling=SamplingParams(max_tokens=2000),
                )
            )
        for _ in range(5):
            engine.step()
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            engine.step()
            times.append((time.perf_counter() - began) * 1000)
        medians.append(statistics.median(times))
    middle = statistics.median(medians)
    return [
        Row(
            what=f"time outside the model per step, {ROWS} rows",
            against=f"the limit of {GOAL_MS} ms",
            ratio=f"{middle / GOAL_MS:.2f}x ({min(medians) / GOAL_MS:.2f}-{max(medians) / GOAL_MS:.2f})",
            goal="<= 1x",
            note=f"{middle:.3f} ms",
        )
    ]
