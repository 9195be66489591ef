"""Our engine against sequential `generate` of transformers: the same weights, the same 32 mixed requests, greedy."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence

import torch

from chatproject.contract.messages import SamplingParams
from tests.bench.models import VOCABULARY, as_loaded, random_llama
from tests.bench.table import Row, median_and_range
from workers.engine.engine import Engine
from workers.engine.interfaces import Piece, SequenceRequest, StepOutput
from workers.model.runner import TorchRunner

REQUESTS, ROUNDS = 32, 5


class _NoText:
    def push(self, token: int) -> Piece:
        return Piece(text="")

    def flush(self) -> str:
        return ""


class _Collector:
    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.num_ended = 0

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.sequence_id, []).extend(output.tokens)
            self.num_ended += output.finish is not None


def _requests() -> list[tuple[list[int], int]]:
    chance = random.Random(1)
    return [
        ([chance.randrange(10, VOCABULARY) for _ in range(chance.randint(16, 160))], chance.randint(8, 128))
        for _ in range(REQUESTS)
    ]


def _ours(runner: TorchRunner, requests: list[tuple[list[int], int]]) -> tuple[float, list[list[int]]]:
    collector = _Collector()
    engine = Engine(runner, listener=collector, step_tokens=512, clock=time.perf_counter)
    began = time.perf_counter()
    for index, (prompt, count) in enumerate(requests):
        engine.add(
            SequenceRequest(
                sequence_id=str(index),
                prompt=tuple(prompt),
                text=_NoText(),
                user_id=str(index),
                sampling=SamplingParams(temperature=0.0, max_tokens=count),
            )
        )
    while collector.num_ended < len(requests):
        engine.step()
    return time.perf_counter() - began, [collector.tokens[str(index)] for index in range(len(requests))]


def _generate(model: torch.nn.Module, requests: list[tuple[list[int], int]]) -> tuple[float, list[list[int]]]:
    began, answers = time.perf_counter(), []
    with torch.inference_mode():
        for prompt, count in requests:
            ids = torch.tensor([prompt])
            out = model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count
            )
            answers.append(out[0, len(prompt) :].tolist())
    return time.perf_counter() - began, answers


def rows() -> list[Row]:
    """Measure, interleaved, and return the table's rows."""
    peer = random_llama(layers=6, width=512)
    runner = TorchRunner(as_loaded(copy.deepcopy(peer)), max_rows=REQUESTS, kv_bytes=256 << 20)
    requests = _requests()
    num_tokens = sum(count for _, count in requests)
    ratios, mine, equal = [], [], 0
    for _ in range(ROUNDS):
        ours_s, ours = _ours(runner, requests)
        peer_s, theirs = _generate(peer, requests)
        equal = sum(left == right for left, right in zip(ours, theirs, strict=True))
        ratios.append(peer_s / ours_s)
        mine.append(num_tokens / ours_s)
    return [
        Row(
            what="32 mixed requests, Llama 6 x 512, fp32",
            against="sequential generate",
            ratio=median_and_range(ratios),
            goal="6x",
            note=f"{sorted(mine)[len(mine) // 2]:.0f} tok/s; {equal} of {REQUESTS} answers equal",
        )
    ]
