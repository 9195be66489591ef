"""What the scheduler's order is worth, and what it costs: VIPs under overload, throughput and evenness against FIFO.

On a virtual clock and without torch, so the same figures come out on every machine. A step takes what a 7B model's
takes on a large GPU: 8 ms, and 1 ms for every 36 tokens in it. FIFO is the same engine when all come from one user in
one lane. What waits in Redis is claimed by the same policy, but not part of this.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.bench.table import Row, median_and_range
from tests.unit.engine.harness import Clock, World
from tests.unit.engine.traffic import Asked, Crowd, PacedRunner, arrivals, jain
from workers.engine.interfaces import Row as EngineRow
from workers.engine.interfaces import RowResult

SEEDS = range(5)
STEP_S, TOKEN_S = 0.008, 0.001 / 36
ROWS, BLOCKS, STEP_TOKENS, CONTEXT = 16, 400, 256, 1024
SECONDS = 20.0
PROMPT, ANSWER = range(20, 200), range(16, 128)
# Requests a second: an answer takes a step per token, one that 16 rows share and that has about 40 tokens.
CAPACITY_PER_S = ROWS / (statistics.mean(ANSWER) * (STEP_S + 40 * TOKEN_S))
OVERLOAD = 10
LONG, SHORT = range(50, 350), range(16, 32)  # prompts of VIPs


def rows() -> list[Row]:
    """Play the traffic and return the table's rows."""
    return [*_vip_rows(), *_even_rows()]


def _vip_rows() -> list[Row]:
    ratios: dict[range, list[float]] = {LONG: [], SHORT: []}
    waits_ms: dict[range, list[float]] = {LONG: [], SHORT: []}
    parts_ms: dict[range, list[dict[str, float]]] = {LONG: [], SHORT: []}
    throughput, preemptions = [], []
    num_fifo = num_vips = 0
    for seed in SEEDS:
        rng = random.Random(seed)
        load = [
            one
            for user in range(7)
            for one in arrivals(
                rng, f"user{user}", OVERLOAD * CAPACITY_PER_S / 7, SECONDS, prompt=PROMPT, answer=ANSWER,
                priority=(3, 6, 9)[user % 3],
            )
        ]  # fmt: skip
        for prompt, found in ratios.items():
            vips = arrivals(rng, "vip", 1.0, SECONDS - 1, prompt=prompt, answer=range(8, 9), priority=0)
            idle, busy = _crowd(vips), _crowd([*vips, *load])
            idle.run(SECONDS)
            busy.run(SECONDS)
            assert len(busy.first_of("vip")) == len(vips), "a VIP has no token yet"
            found.append(statistics.mean(busy.first_of("vip")) / statistics.mean(idle.first_of("vip")))
            waits_ms[prompt] += [seconds * 1000 for seconds in busy.first_of("vip")]
            parts_ms[prompt] += _parts_ms(busy)
            if prompt is LONG:
                fifo = _crowd([*vips, *load], is_fifo=True)
                fifo.run(SECONDS)
                throughput.append(sum(busy.served().values()) / sum(fifo.served().values()))
                num_fifo, num_vips = num_fifo + len(fifo.first_of("vip")), num_vips + len(vips)
                preemptions.append(busy.world.engine.stats().preemptions)
    return [
        Row(
            what=f"VIP's first token with {OVERLOAD}x overload, prompts of {prompt.start}-{prompt.stop}",
            against="the same VIPs on an idle engine (less is better)", ratio=median_and_range(ratios[prompt]),
            goal="<= 1.5x",
            note=f"mean {statistics.mean(waits_ms[prompt]):.1f} ms ({_profile(parts_ms[prompt])}), slowest of "
            f"{len(waits_ms[prompt])} {max(waits_ms[prompt]):.0f} ms; by FIFO {num_fifo} of {num_vips} begin at all",
        )
        for prompt in (LONG, SHORT)
    ] + [
        Row(
            what=f"throughput with {OVERLOAD}x overload and VIPs", against="FIFO",
            ratio=median_and_range(throughput), goal="0.98x",
            note=f"tokens of prompts and answers; {statistics.median(preemptions):.0f} preemptions by VIPs in "
            f"{SECONDS:.0f} s",
        )
    ]  # fmt: skip


def _parts_ms(crowd: Crowd) -> list[dict[str, float]]:
    """Of each VIP's first token, where its milliseconds went."""
    runner = crowd.world.runner
    assert isinstance(runner, _Watched)
    found = []
    for id_, seconds in crowd.first_s.items():
        asked = crowd.asked[int(id_[1:])]
        if asked.user != "vip":
            continue
        own = [step for step in runner.steps if id_ in step.tokens and step.began_s < asked.at_s + seconds - 1e-9]
        tokens = [sum(step.tokens.values()) for step in own]
        mine = sum(step.tokens[id_] for step in own)
        found.append({
            "the rest of the step that ran": (own[0].began_s - asked.at_s) * 1000,
            "weights": len(own) * STEP_S * 1000,
            "its own tokens": mine * TOKEN_S * 1000,
            "others' tokens in its steps": (sum(tokens) - mine) * TOKEN_S * 1000,
        })  # fmt: skip
        assert abs(sum(found[-1].values()) - seconds * 1000) < 1e-6, "the parts are not the whole"
    return found


def _profile(parts_ms: list[dict[str, float]]) -> str:
    return ", ".join(f"{statistics.mean(each[name] for each in parts_ms):.1f} {name}" for name in parts_ms[0])


def _even_rows() -> list[Row]:
    found: dict[bool, list[float]] = {False: [], True: []}
    per_s = 2 * CAPACITY_PER_S / 10  # twice what an equal share serves, so that all are backlogged
    for seed in SEEDS:
        rng = random.Random(seed)
        asked = [
            one
            for user in range(10)
            for one in arrivals(
                rng, f"user{user}", per_s * (1 if user else 10), SECONDS, prompt=PROMPT, answer=ANSWER
            )
        ]  # fmt: skip
        for is_fifo, values in found.items():
            crowd = _crowd(asked, is_fifo=is_fifo)
            crowd.run(SECONDS / 2)
            before = crowd.served()
            for second in range(int(SECONDS / 2)):
                assert len(crowd.waiting_users()) == 10, "not all are backlogged"
                crowd.run(SECONDS / 2 + second + 1)
            values.append(jain([had - before[user] for user, had in crowd.served().items()]))
    fair, fifo = found[False], found[True]
    return [
        Row(
            what="Jain index of 10 equal users, one sending 10x, all backlogged, second half",
            against=f"FIFO in the same run: {statistics.median(fifo):.2f} ({min(fifo):.2f}-{max(fifo):.2f})",
            ratio=f"{statistics.median(fair):.3f} ({min(fair):.3f}-{max(fair):.3f})", goal="0.99",
            note="tokens of prompts and answers; the index itself, not a ratio",
        )
    ]  # fmt: skip


class _Step(NamedTuple):
    began_s: float
    tokens: dict[str, int]  # of each sequence


class _Watched(PacedRunner):
    """Remembers its steps."""

    def __init__(self, clock: Clock, **sizes: Any) -> None:
        super().__init__(sleep=clock.sleep, **sizes)
        self._clock = clock
        self.steps: list[_Step] = []

    def step(self, rows: Sequence[EngineRow]) -> Sequence[RowResult]:
        self.steps.append(_Step(self._clock(), {row.sequence_id: len(row.tokens) for row in rows}))
        return super().step(rows)


def _crowd(asked: list[Asked], *, is_fifo: bool = False) -> Crowd:
    clock = Clock()
    runner = _Watched(clock, step_s=STEP_S, token_s=TOKEN_S, max_rows=ROWS, num_blocks=BLOCKS, context_tokens=CONTEXT)
    return Crowd(World(runner=runner, clock=clock, step_tokens=STEP_TOKENS), asked, is_fifo=is_fifo)
