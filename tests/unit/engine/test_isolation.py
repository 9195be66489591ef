"""No request hurts another: the culprit fails with a code, its mates finish as if it had not been there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from chatproject.contract.errors import Failure
from chatproject.contract.messages import SamplingParams
from tests.unit.engine.harness import World, alone
from workers.engine.interfaces import Piece, Row, RowResult
from workers.errors import FatalEngineError, OutOfMemory, RequestRejected
from workers.fakes import FakeRunner

MATES = {"mate1": (1, 2, 3), "mate2": tuple(range(30))}


class _Faulty(FakeRunner):
    """A runner with a fault in the rows of sequence ``culprit`` from its fourth step on."""

    def __init__(self, fault: str) -> None:
        super().__init__(step_ms=0, num_blocks=64, context_tokens=512)
        self.fault = fault
        self.num_calls = 0

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        self.num_calls += 1
        results = list(super().step(rows))
        for index, row in enumerate(rows):
            if row.sequence_id != "culprit" or row.start < 5:
                continue
            if self.fault == "raise":
                raise RuntimeError("device-side trouble")
            if self.fault == "memory":
                raise MemoryError
            if self.fault == "fatal":
                raise FatalEngineError("sticky")
            if self.fault == "short":
                return results[:-1] if len(rows) > 1 else []
            results[index] = {
                "nan": RowResult(failure=Failure.NUMERICAL), "silent": RowResult(), "float": RowResult(token=1.5),
            }[self.fault]  # fmt: skip
        return results


def _assert_mates_unharmed(world: World) -> None:
    for id_, prompt in MATES.items():
        assert world.record.tokens[id_] == list(alone(prompt, 20))
        assert world.record.finish[id_].reason == "length"
    stats = world.engine.stats()
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, world.runner.num_blocks)


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("raise", Failure.ENGINE_ERROR),
        ("memory", Failure.ENGINE_ERROR),
        ("short", Failure.ENGINE_ERROR),
        ("silent", Failure.ENGINE_ERROR),
        ("float", Failure.ENGINE_ERROR),
        ("nan", Failure.NUMERICAL),
    ],
)
def test_a_fault_in_one_row_ends_that_row_only(fault: str, failure: Failure) -> None:
    world = World(runner=_Faulty(fault))
    world.add("culprit", (9, 8, 7), 20)
    for id_, prompt in MATES.items():
        world.add(id_, prompt, 20)
    world.run()
    finish = world.record.finish["culprit"]
    assert (finish.reason, finish.failure) == ("failed", failure)
    assert finish.message
    assert world.record.tokens["culprit"] == list(alone((9, 8, 7), 20))[: finish.completion_tokens]
    _assert_mates_unharmed(world)


class _Tight(FakeRunner):
    """A runner whose memory holds steps of so many rows and tokens, and none in which ``culprit`` is."""

    def __init__(self, *, rows: int, tokens: int) -> None:
        super().__init__(step_ms=0, num_blocks=64, context_tokens=512, max_rows=8)
        self.room = (rows, tokens)
        self.refused = 0
        self.sizes: list[int] = []

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        size = (len(rows), sum(len(row.tokens) for row in rows))
        if size[0] > self.room[0] or size[1] > self.room[1] or any(row.sequence_id == "culprit" for row in rows):
            self.refused += 1
            raise OutOfMemory("no room")
        self.sizes.append(size[0])
        return super().step(rows)


def test_out_of_memory_shrinks_the_batch_and_everyone_is_answered() -> None:
    runner = _Tight(rows=3, tokens=40)
    world = World(runner=runner)
    prompts = {str(i): tuple(range(i, i + 10 * i + 1)) for i in range(8)}
    for id_, prompt in prompts.items():
        world.add(id_, prompt, 40)
    for _ in range(60):
        world.engine.step()
        world.engine.check_integrity()
    assert 1 <= runner.refused < 10
    assert world.engine.stats().preemptions > 0
    runner.room = (8, 1000)  # others have given back what they held
    world.run()
    assert max(runner.sizes) > 3, "it never grew back"
    for id_, prompt in prompts.items():
        assert world.record.tokens[id_] == list(alone(prompt, 40))
    assert world.engine.stats().free_blocks == runner.num_blocks


@pytest.mark.parametrize("is_first", [True, False])
def test_what_does_not_fit_the_memory_alone_fails_alone(is_first: bool) -> None:
    world = World(runner=_Tight(rows=8, tokens=1000))
    if is_first:
        world.add("culprit", range(40), 20)
    for id_, prompt in MATES.items():
        world.add(id_, prompt, 20)
    if not is_first:
        world.add("culprit", range(40), 20)
    world.run()
    finish = world.record.finish["culprit"]
    assert (finish.reason, finish.failure) == ("failed", Failure.ENGINE_ERROR)
    _assert_mates_unharmed(world)


def test_a_device_that_is_gone_is_not_taken_for_a_request() -> None:
    world = World(runner=_Faulty("fatal"))
    world.add("culprit", (9, 8, 7), 20)
    with pytest.raises(FatalEngineError):
        world.run()


class _BadText:
    def __init__(self, good_pushes: int) -> None:
        self._left = good_pushes

    def push(self, token: int) -> Piece:
        self._left -= 1
        if self._left < 0:
            raise ValueError("no such token")
        return Piece(text=f"{token} ")

    def flush(self) -> str:
        raise ValueError("nothing to flush")


@pytest.mark.parametrize("good_pushes", [0, 4, 100])
def test_text_that_fails_ends_its_own_sequence_only(good_pushes: int) -> None:
    world = World()
    world.add("culprit", (9, 8, 7), 20, text=_BadText(good_pushes))
    for id_, prompt in MATES.items():
        world.add(id_, prompt, 20)
    world.run()
    finish = world.record.finish["culprit"]
    assert (finish.reason, finish.failure) == ("failed", Failure.ENGINE_ERROR)
    _assert_mates_unharmed(world)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ()},
        {"prompt": range(10_000)},
        {"prompt": (1, -1)},
        {"prompt": (1, 2**40)},
        {"prompt": (1, None)},
        {"prompt": (1, 2), "prefix": (2**33,), "text": _BadText(0)},
        {"sampling": SamplingParams(temperature=float("nan"))},
        {"sampling": SamplingParams(temperature=-1)},
        {"sampling": SamplingParams(temperature=float("inf"))},
        {"sampling": SamplingParams(top_p=0)},
        {"sampling": SamplingParams(top_k=-1)},
        {"sampling": SamplingParams(max_tokens=0)},
        {"sampling": SamplingParams(temperature="hot")},  # type: ignore[arg-type]
        {"sampling": SamplingParams(min_p=1.5)},
        {"sampling": SamplingParams(repetition_penalty=0)},
        {"sampling": SamplingParams(repetition_penalty=float("nan"))},
        {"sampling": SamplingParams(presence_penalty=float("inf"))},
        {"sampling": SamplingParams(frequency_penalty=float("nan"))},
        {"sampling": SamplingParams(logit_bias=tuple((token, 1.0) for token in range(100_000)))},
        {"sampling": SamplingParams(logit_bias=((2**31, 1.0),))},
        {"sampling": SamplingParams(logit_bias=((5, 1.0), (5, 2.0)))},
        {"sampling": SamplingParams(logit_bias=((5, float("nan")),))},
        {"sampling": SamplingParams(logit_bias=5)},  # type: ignore[arg-type]
        {"sampling": SamplingParams(logprobs=21)},
        {"sampling": SamplingParams(stop=("x",) * 100_000)},
        {"user_id": None},
        {"weight": float("nan")},
        {"weight": "heavy"},
    ],
)
def test_what_can_never_run_is_rejected_and_says_why(fields: dict[str, Any]) -> None:
    world = World()
    for id_, prompt in MATES.items():
        world.add(id_, prompt, 20)
    world.engine.step()
    world.add("culprit", **({"prompt": (1, 2)} | fields))
    world.run()
    finish = world.record.finish["culprit"]
    assert (finish.reason, finish.failure) == ("failed", Failure.REJECTED)
    assert finish.message.endswith(".")
    _assert_mates_unharmed(world)


def test_a_repeated_id_does_not_touch_the_one_that_lives() -> None:
    world = World()
    for id_, prompt in MATES.items():
        world.add(id_, prompt, 20)
    world.engine.step()
    with pytest.raises(RequestRejected):
        world.add("mate1", (4, 4, 4), 5)
    world.run()
    _assert_mates_unharmed(world)


def test_what_a_failed_sequence_computed_is_not_reused() -> None:
    """Its keys and values may be the reason: a retry must compute them again."""
    prompt = tuple(range(100))
    world = World(runner=_Faulty("nan"))
    world.add("culprit", prompt, 5, user_id="alice")
    world.run()
    world.add("retry", prompt, 5, user_id="alice")
    world.run()
    assert world.record.finish["retry"].cached_tokens == 0
    assert world.record.tokens["retry"] == list(alone(prompt, 5))


def test_only_the_step_with_the_culprit_is_run_row_by_row() -> None:
    world = World(runner=_Faulty("raise"))
    world.add("culprit", (9, 8, 7), 20)
    for id_, prompt in MATES.items():
        world.add(id_, prompt, 20)
    world.run()
    assert isinstance(world.runner, _Faulty)
    assert world.runner.num_calls == world.engine.steps + 3


def test_row_and_output_cannot_be_changed_by_who_gets_them() -> None:
    row = Row(sequence_id="a", tokens=(1,), start=0, block_table=(0,), sampling=None)
    with pytest.raises(AttributeError):
        row.start = 1  # type: ignore[misc]
