"""Traffic on a virtual clock that tests and `make bench` share: who asks when, and how even the service was.

Knows the harness. With ``is_fifo`` the same requests come from one user in one lane: first come, first served.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.unit.engine.harness import World
from workers.engine.interfaces import Row, RowResult, StepOutput
from workers.fakes import FakeRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request to come."""

    at_s: float
    user: str
    num_prompt: int
    num_answer: int
    priority: int = 3


class PacedRunner(FakeRunner):
    """A fake whose steps take as long as they are large, and as on a GPU never less than the weights take to read."""

    def __init__(self, *, sleep: Callable[[float], None], step_s: float, token_s: float, **sizes: int) -> None:
        super().__init__(step_ms=0, **sizes)
        self._pass, self._least_s, self._token_s = sleep, step_s, token_s

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        self._pass(self._least_s + self._token_s * sum(len(row.tokens) for row in rows))
        return super().step(rows)


class Crowd:
    """Plays requests into a world at their moments, and keeps what each user got and when."""

    def __init__(self, world: World, asked: Sequence[Asked], *, is_fifo: bool = False) -> None:
        self.world = world
        self.asked = sorted(asked, key=lambda one: one.at_s)
        self.first_s: dict[str, float] = {}  # from the moment somebody asked to the first token
        self._is_fifo = is_fifo
        self._num_added = 0
        self._told = world.record.on_step
        world.record.on_step = self._listen  # type: ignore[method-assign]

    def run(self, until_s: float) -> None:
        """Step to ``until_s``; in idle time jump to the next request."""
        clock, engine = self.world.clock, self.world.engine
        while clock.now_s < until_s:
            while self._num_added < len(self.asked) and self.asked[self._num_added].at_s <= clock.now_s:
                self._add(self._num_added)
            if not engine.step():
                if self._num_added == len(self.asked):
                    return
                clock.sleep(self.asked[self._num_added].at_s - clock.now_s)

    def served(self) -> dict[str, int]:
        """Return the tokens each user has had: of answers, and of prompts from their first token on."""
        found = {one.user: 0 for one in self.asked}
        for id_, tokens in self.world.record.tokens.items():
            if tokens:
                one = self._of(id_)
                found[one.user] += one.num_prompt + len(tokens)
        return found

    def waiting_users(self) -> set[str]:
        """Return who has asked for something that has not begun."""
        return {one.user for one in self.asked[: self._num_added]} & {
            self._of(id_).user for id_ in self._ids() if id_ not in self.first_s
        }

    def first_of(self, user: str) -> list[float]:
        """Return the seconds to each first token of ``user``."""
        return [seconds for id_, seconds in self.first_s.items() if self._of(id_).user == user]

    def _listen(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            if output.tokens and output.sequence_id not in self.first_s:
                self.first_s[output.sequence_id] = self.world.clock.now_s - self._of(output.sequence_id).at_s
        self._told(outputs)

    def _ids(self) -> Iterator[str]:
        return (f"r{index}" for index in range(self._num_added))

    def _of(self, id_: str) -> Asked:
        return self.asked[int(id_[1:])]

    def _add(self, index: int) -> None:
        one = self.asked[index]
        self._num_added += 1
        # Each prompt is its own from the first token, so that nothing is shared.
        prompt = [10_000 + index, *range(20_000, 20_000 + one.num_prompt - 1)]
        who = {} if self._is_fifo else {"user_id": one.user, "priority": one.priority}
        self.world.add(f"r{index}", prompt, one.num_answer, arrived_ms=int(one.at_s * 1000), **who)


def arrivals(
    rng: random.Random, user: str, per_s: float, until_s: float, *, prompt: range, answer: range, priority: int = 3
) -> list[Asked]:
    """Return requests at random moments, ``per_s`` of them a second on average."""
    found, at_s = [], rng.expovariate(per_s)
    while at_s < until_s:
        found.append(
            Asked(at_s=at_s, user=user, num_prompt=rng.choice(prompt), num_answer=rng.choice(answer), priority=priority)
        )
        at_s += rng.expovariate(per_s)
    return found


def jain(values: Sequence[float]) -> float:
    """Return 1 when all have the same, 1 / n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
