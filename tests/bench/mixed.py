"""The 32 mixed requests of the batching benchmarks, and our engine's run of them: greedy, all there from the start."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from chatproject.contract.messages import SamplingParams
from tests.bench.models import VOCABULARY
from workers.engine.engine import Engine
from workers.engine.interfaces import ModelRunner, Piece, Row, RowResult, SequenceRequest, StepOutput

REQUESTS = 32
STEP_TOKENS = 512
LONGEST = 160 + 128  # prompt and answer

Request = tuple[list[int], int]  # prompt, tokens of the answer


class NoText:
    """A text stream for those who count tokens."""

    def push(self, token: int) -> Piece:
        return Piece(text="")

    def flush(self) -> str:
        return ""


class Collector:
    """A listener that keeps the tokens."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.num_ended = 0

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.sequence_id, []).extend(output.tokens)
            self.num_ended += output.finish is not None


class InstantRunner:
    """A model that takes no time, so that what is left is the engine's own."""

    context_tokens, max_rows = 4096, 64
    eos_tokens: frozenset[int] = frozenset()

    def __init__(self, num_blocks: int = 8192) -> None:
        self.num_blocks = num_blocks

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        return [RowResult(token=7) for _ in rows]


def mixed_requests(seed: int = 1) -> list[Request]:
    """Return prompts of 16 to 160 tokens that want 8 to 128."""
    chance = random.Random(seed)
    return [
        ([chance.randrange(10, VOCABULARY) for _ in range(chance.randint(16, 160))], chance.randint(8, 128))
        for _ in range(REQUESTS)
    ]


def ours(runner: ModelRunner, requests: list[Request]) -> tuple[float, list[list[int]]]:
    """Return the seconds our engine takes, and its answers."""
    collector = Collector()
    engine = Engine(runner, listener=collector, step_tokens=STEP_TOKENS, clock=time.perf_counter)
    began = time.perf_counter()
    play(engine, collector, requests)
    return time.perf_counter() - began, [collector.tokens[str(index)] for index in range(len(requests))]


def play(engine: Engine, collector: Collector, requests: list[Request]) -> None:
    """Run ``requests`` to their end; each is of a user of its own."""
    for index, (prompt, count) in enumerate(requests):
        engine.add(
            SequenceRequest(
                sequence_id=str(index),
                prompt=tuple(prompt),
                text=NoText(),
                user_id=str(index),
                sampling=SamplingParams(temperature=0.0, max_tokens=count),
            )
        )
    end = collector.num_ended + len(requests)
    while collector.num_ended < end:
        engine.step()
