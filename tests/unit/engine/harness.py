"""What the engine's tests share: a clock that only steps move, a listener that keeps account, the answer alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from chatproject.contract.messages import SamplingParams
from workers.engine.engine import Engine
from workers.engine.interfaces import BLOCK_TOKENS, Finish, Row, RowResult, SequenceRequest, StepOutput
from workers.fakes import FakeRunner, FakeTextStream, FakeTokenizer, word_of

STEP_S = 0.02


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Record:
    """A listener that holds the engine to its promise: pieces in order, one end, nothing after it."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.text: dict[str, str] = {}
        self.finish: dict[str, Finish] = {}
        self.dropped: set[str] = set()

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        assert len({output.sequence_id for output in outputs}) == len(outputs), "two outputs of one sequence"
        for output in outputs:
            id_ = output.sequence_id
            assert id_ not in self.finish, f"{id_}: an output after its end"
            assert id_ not in self.dropped, f"{id_}: an output after it was dropped"
            self.tokens.setdefault(id_, []).extend(output.tokens)
            self.text[id_] = self.text.get(id_, "") + output.text
            if output.finish is not None:
                self.finish[id_] = output.finish


class World:
    """An engine with a fake runner on a virtual clock."""

    def __init__(
        self, *, runner: FakeRunner | None = None, clock: Clock | None = None, step_tokens: int = 64, **sizes: int
    ) -> None:
        self.clock = clock or Clock()
        sizes = {"num_blocks": 64, "max_rows": 8, "context_tokens": 512} | sizes
        self.runner = runner or FakeRunner(step_ms=STEP_S * 1000, sleep=self.clock.sleep, **sizes)
        self.record = Record()
        self.engine = Engine(self.runner, listener=self.record, step_tokens=step_tokens, clock=self.clock)

    def add(self, id_: str, prompt: Sequence[int], max_tokens: int = 8, **fields: object) -> None:
        self.engine.add(request(id_, prompt, max_tokens, **fields))

    def run(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not self.engine.step():
                return
            self.engine.check_integrity()
        raise AssertionError(f"not done after {limit} steps")


def request(id_: str, prompt: Sequence[int], max_tokens: int = 8, **fields: object) -> SequenceRequest:
    stop = fields.pop("stop", ())
    prefix = tuple(fields.pop("prefix", ()))
    sampling = fields.pop("sampling", None) or SamplingParams(max_tokens=max_tokens, stop=stop)
    text = fields.pop("text", None) or FakeTokenizer().text_stream(stop, prefix)
    return SequenceRequest(sequence_id=id_, prompt=tuple(prompt), prefix=prefix, sampling=sampling, text=text, **fields)


@functools.cache
def alone(prompt: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """Return the answer when nothing else runs: no engine, no chunks, no sharing."""
    num_blocks = -(-(len(prompt) + num_tokens) // BLOCK_TOKENS)
    runner = FakeRunner(step_ms=0, num_blocks=num_blocks, max_rows=1)
    table, tokens, start = tuple(range(num_blocks)), list(prompt), 0
    for _ in range(num_tokens):
        row = Row(
            sequence_id="alone", tokens=tuple(tokens[start:]), start=start, block_table=table, sampling=SamplingParams()
        )
        start = len(tokens)
        (result,) = runner.step([row])
        assert result.token is not None
        tokens.append(result.token)
    return tuple(tokens[len(prompt) :])


def words(tokens: Sequence[int]) -> str:
    return "".join(map(word_of, tokens))


__all__ = ["STEP_S", "Clock", "FakeTextStream", "Record", "RowResult", "World", "alone", "request", "words"]
