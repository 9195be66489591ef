"""Random traffic on a virtual clock: whatever happens around it, each answer is the one it would have alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from chatproject.contract.errors import Failure
from tests.unit.engine.harness import World, alone, words
from workers.engine.interfaces import Row, RowResult
from workers.fakes import FakeRunner

USERS = ("alice", "bob", "charlie")
NUM_REQUESTS = 40


class _Trouble(FakeRunner):
    """A runner that refuses some whole batches, fails some sequences, and raises because of others."""

    def __init__(self, rng: random.Random, **sizes: int) -> None:
        super().__init__(step_ms=0, **sizes)
        self._rng = rng

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        results = list(super().step(rows))
        if len(rows) > 1 and self._rng.random() < 0.05:
            raise RuntimeError("not together")
        for index, row in enumerate(rows):
            if row.start + len(row.tokens) > 30 and "raises" in row.sequence_id:
                raise RuntimeError("the culprit's trouble")
            if row.start + len(row.tokens) > 30 and "numerical" in row.sequence_id:
                results[index] = RowResult(failure=Failure.NUMERICAL)
        return results


@dataclass(frozen=True)
class _Asked:
    prompt: tuple[int, ...]
    limit: int
    num_prefix: int
    stop: str


class _Traffic:
    """Requests of every kind, cancels and drops, at random moments."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        sizes = {
            "num_blocks": rng.choice((6, 8, 12, 40)),
            "max_rows": rng.choice((1, 2, 3, 8)),
            "context_tokens": rng.choice((80, 96, 512)),
        }
        runner = _Trouble(rng, **sizes)
        runner.runs_ahead = seed % 2 == 1  # blocks a step early, as a GPU's runner wants them
        self.world = World(runner=runner, step_tokens=rng.choice((1, 7, 16, 50, 256)))
        self.room = min(sizes["num_blocks"] * 16, sizes["context_tokens"])
        self.asked: dict[str, _Asked] = {}
        self.cancelled: set[str] = set()

    def run(self) -> None:
        rng, world, record = self.rng, self.world, self.world.record
        while len(self.asked) < NUM_REQUESTS or len(record.finish) + len(record.dropped) < len(self.asked):
            if len(self.asked) < NUM_REQUESTS:
                for _ in range(rng.choice((0, 0, 1, 3))):
                    self._ask()
            if self.asked and rng.random() < 0.05:
                id_ = rng.choice(sorted(self.asked))
                world.engine.cancel(id_)
                self.cancelled.add(id_)
            if self.asked and rng.random() < 0.05:
                id_ = rng.choice(sorted(self.asked))
                if id_ not in record.finish:
                    world.engine.drop(id_)
                    record.dropped.add(id_)
            world.engine.step()
            world.engine.check_integrity()
            assert world.engine.steps < 5_000, "someone starves"

    def _ask(self) -> None:
        rng = self.rng
        kind = rng.choice(("plain",) * 6 + ("raises", "numerical"))
        id_, prompt, max_tokens = f"{kind}{len(self.asked)}", _prompt(rng), rng.randrange(1, 40)
        limit = min(max_tokens, self.room - len(prompt))
        answer = alone(prompt, limit)
        num_prefix, stop = rng.choice((0, 0, rng.randrange(limit + 1))), ""
        if not num_prefix and rng.random() < 0.3:
            text = words(answer)
            begin = rng.randrange(len(text))
            stop = text[begin : begin + rng.randrange(1, 12)]
        self.asked[id_] = _Asked(prompt, limit, num_prefix, stop)
        self.world.add(
            id_,
            prompt,
            max_tokens,
            prefix=answer[:num_prefix],
            stop=(stop,) if stop else (),
            user_id=rng.choice(USERS),
            priority=rng.choice((0, 3, 3, 6, 9)),
            weight=rng.choice((0.5, 1.0, 2.0)),
            arrived_ms=rng.randrange(100),
        )


def _prompt(rng: random.Random) -> tuple[int, ...]:
    """Return one of a few openings and then something of its own, so that prefixes are shared and parted from."""
    opening = [10_000 + rng.randrange(3)] * rng.randrange(60)
    own = [20_000 + rng.randrange(4) for _ in range(rng.randrange(1, 24))]
    return tuple([*opening, *own][:60])


@pytest.mark.parametrize("seed", range(50))
def test_every_answer_is_the_one_it_would_be_alone(seed: int) -> None:
    traffic = _Traffic(seed)
    traffic.run()
    record = traffic.world.record
    for id_, asked in traffic.asked.items():
        if id_ in record.dropped:
            continue
        finish, text, got = record.finish[id_], record.text[id_], tuple(record.tokens.get(id_, ()))
        expected = alone(asked.prompt, asked.limit)[asked.num_prefix :]
        whole = words(expected)
        at = whole.find(asked.stop) if asked.stop else -1
        assert got == expected[: len(got)]
        assert finish.completion_tokens == asked.num_prefix + len(got)
        if finish.reason == "stop":
            assert at >= 0
            assert text == whole[:at]
            assert asked.stop in words(got)
            assert asked.stop not in words(got[:-1])
            continue
        assert text == words(got)
        assert at < 0 or asked.stop not in text
        if finish.reason == "length":
            assert got == expected
        elif finish.reason == "cancelled":
            assert id_ in traffic.cancelled
        else:
            assert finish.failure is (Failure.ENGINE_ERROR if "raises" in id_ else Failure.NUMERICAL)
            assert not id_.startswith("plain")
    stats = traffic.world.engine.stats()
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, traffic.world.runner.num_blocks)


def test_random_traffic_meets_what_it_is_meant_to_meet() -> None:
    """The test above proves something only if it gets into trouble."""
    preemptions = cached = 0
    ends: dict[str, int] = {}
    for seed in range(12):
        traffic = _Traffic(seed)
        traffic.run()
        preemptions += traffic.world.engine.stats().preemptions
        cached += traffic.world.engine.stats().cached_tokens
        for finish in traffic.world.record.finish.values():
            ends[finish.reason] = ends.get(finish.reason, 0) + 1
    assert preemptions > 20
    assert cached > 200
    assert all(ends[reason] > 20 for reason in ("stop", "length", "cancelled", "failed"))


def test_engine_seconds_of_requests_and_idle_add_up_to_the_wall() -> None:
    rng = random.Random(7)
    world = World(num_blocks=12, max_rows=4, step_tokens=20)
    for index in range(30):
        world.add(f"s{index}", _prompt(rng), rng.randrange(1, 30), user_id=rng.choice(USERS))
        for _ in range(rng.randrange(40)):
            if not world.engine.step():
                world.engine.rest(lambda: world.clock.sleep(0.5))
    world.run()
    shared_s = sum(finish.engine_s for finish in world.record.finish.values())
    stats = world.engine.stats()
    assert stats.idle_s > 1
    assert stats.busy_s + stats.idle_s == pytest.approx(world.clock.now_s)
    assert shared_s == pytest.approx(stats.busy_s)
