"""The streaming plane: first tokens, streams at 30 tokens/s, processor time per token, idle sockets.

The clients run on the same cores. Times are taken from tokens that say when they were made, so nothing is estimated.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.streaming import sides
from tests.bench.streaming.clients import Answer, Reader
from tests.bench.streaming.sides import Side
from tests.bench.table import Row, failed, median_and_range, show

USERS = 100
ROUNDS, ROUND_S, MESSAGES_PER_S, SHORT = 5, 6.0, 20.0, 4  # of the first-token rows; tokens of an answer
WAKES, REST_S = 40, 0.03
STEP_MS, RATE = 1000 / 30, 30
USUAL_ANSWER = 60  # tokens: two seconds at this rate, so 40 of the users are being answered at any time
STREAMS = (500, 1000)
GOAL_US = 60
WINDOW_S = 10.0  # measured while all streams run
STARTS_PER_S = 10
USUAL_STREAMS = 20  # more, and the recipe falls behind
IDLE, IDLE_S = 10_000, 300.0


def rows() -> list[Row]:
    """Measure and return the table's rows."""
    found: list[Row] = []
    for measure in (_first_token_rows, _first_token_among_streams_rows, _stream_rows, _idle_rows):
        try:
            part = measure()
        except Exception as error:  # each takes minutes: what others measured is still told
            traceback.print_exc()
            part = [failed(measure.__name__.strip("_"), error)]
        print(show(part), file=sys.stderr, flush=True)
        found += part
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chat-bench-") as path:
        yield Path(path)


# --- the first token


def _first_token_rows() -> list[Row]:
    # The recipe chokes on streams, and here are none: what it takes is told, and nothing is asked of it.
    return _first_token_part(step_ms=0, tokens=SHORT, what=f"first token added by the stack, {USERS} users", factor="-")


def _first_token_among_streams_rows() -> list[Row]:
    running = MESSAGES_PER_S * USUAL_ANSWER / RATE
    what = f"the same while {running:.0f} answers run at {RATE} tok/s"
    return _first_token_part(step_ms=STEP_MS, tokens=USUAL_ANSWER, what=what)


def _first_token_part(*, step_ms: float, tokens: int, what: str, factor: str = ">= 20x") -> list[Row]:
    with ExitStack() as stack:
        bare = stack.enter_context(sides.bare_sse(step_ms=step_ms))
        usual = stack.enter_context(sides.usual_recipe(step_ms=step_ms))
        ours = [
            stack.enter_context(
                sides.ours(
                    stack.enter_context(_directory()), step_ms=step_ms, users=USERS, with_postgresql=with_postgresql
                )
            )
            for with_postgresql in (False, True)
        ]
        firsts: dict[str, list[list[float]]] = {side.name: [] for side in (bare, usual, *ours)}
        wakes: list[float] = []
        for round_ in range(-1, ROUNDS):  # one to warm up
            wakes += _wakes_ms()
            for side in (bare, usual, *ours):
                found = asyncio.run(_first_tokens(side, tokens, seed=round_))
                if round_ >= 0:
                    firsts[side.name].append(found)
    return [row for side in ours for row in _first_token_table(what, side.name, firsts, wakes, factor)]


def _wakes_ms() -> list[float]:
    """Return how long this machine takes to wake a process that rested and be woken by it: ours are a dozen wakes."""
    echo = "import os\nwhile piece := os.read(0, 1): os.write(1, piece)"
    found = []
    with subprocess.Popen(
        [sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        for _ in range(WAKES + 1):
            time.sleep(REST_S)
            began = time.perf_counter()
            peer.stdin.write(b"x")
            peer.stdout.read(1)
            found.append((time.perf_counter() - began) * 1e3)
        peer.stdin.close()
    return found[1:]  # without the start of the process


def _first_token_table(
    what: str, name: str, firsts: dict[str, list[list[float]]], wakes: list[float], factor: str
) -> list[Row]:
    p50 = {side: [_percentile(round_, 50) for round_ in rounds] for side, rounds in firsts.items()}
    p99 = {side: _percentile([ms for round_ in rounds for ms in round_], 99) for side, rounds in firsts.items()}
    what = f"{what}, {name}, p50"
    note = (
        f"p50 {statistics.median(p50[name]):.1f} ms, p99 {p99[name]:.1f} ms (goal p99 20 ms); two resting processes "
        f"wake each other in {_percentile(wakes, 50):.2f} / {_percentile(wakes, 99):.2f} ms"
    )
    to_bare = [mine / peer for mine, peer in zip(p50[name], p50["bare SSE"], strict=True)]
    to_usual = [peer / mine for mine, peer in zip(p50[name], p50["usual recipe"], strict=True)]
    peers = {side: f"{side} {statistics.median(p50[side]):.1f} / {p99[side]:.1f} ms" for side in p50}
    return [
        Row(what=what, against="bare FastAPI + SSE (less is better)", ratio=median_and_range(to_bare), goal="<= 4x",
            note=f"{note}; {peers['bare SSE']}"),
        Row(what=what, against="the usual recipe (more is better)", ratio=median_and_range(to_usual), goal=factor,
            note=f"{note}; {peers['usual recipe']}"),
    ]  # fmt: skip


async def _first_tokens(side: Side, tokens: int, *, seed: int) -> list[float]:
    """Milliseconds to the first token of every message; they come at random moments from users at random."""
    chance = random.Random(seed)
    readers = [await side.connect(number) for number in range(USERS)]
    free = list(readers)
    asking: set[asyncio.Task[Answer]] = set()
    answers: list[Answer] = []
    end_s = time.monotonic() + ROUND_S

    async def ask(reader: Reader) -> Answer:
        answer = await asyncio.wait_for(reader.ask(f"How do you do, number {chance.random()}?", tokens), 60)
        answers.append(answer)
        free.append(reader)
        return answer

    while time.monotonic() < end_s:
        await asyncio.sleep(chance.expovariate(MESSAGES_PER_S))
        if free:
            asking.add(asyncio.create_task(ask(free.pop(chance.randrange(len(free))))))
    await asyncio.gather(*asking)
    for reader in readers:
        reader.close()
    _check(answers, tokens)
    return [answer.first_ms for answer in answers]


# --- streams


@dataclass(frozen=True, slots=True, kw_only=True)
class _Streams:
    """What a window of many running streams showed."""

    frame_ms: list[float]  # from the newest token of a frame being made to its arrival
    token_ms: list[float]  # the same from its oldest token: what the wait for company costs is in it
    gap_ms: list[float]  # between the arrivals of two frames of one stream
    tokens: int
    frames: int
    cpu_s: float
    rate: float  # tokens a second and stream

    @property
    def token_us(self) -> float:
        return self.cpu_s / self.tokens * 1e6

    @property
    def frame_us(self) -> float:
        return self.cpu_s / self.frames * 1e6


def _stream_rows() -> list[Row]:
    found = []
    with _directory() as directory, sides.usual_recipe(step_ms=STEP_MS) as usual:
        peer = asyncio.run(_streams(usual, USUAL_STREAMS))
        with sides.ours(directory, step_ms=STEP_MS, users=USERS) as ours:
            for count in STREAMS:
                mine = asyncio.run(_streams(ours, count))
                found += _stream_table(count, mine, peer)
    return found


def _stream_table(count: int, mine: _Streams, peer: _Streams) -> list[Row]:
    goal_ms = 100 if count <= 500 else 150
    p99 = _percentile(mine.frame_ms, 99)
    what = f"{count} streams x {RATE} tok/s on one daphne"
    return [
        Row(
            what=f"{what}, frame p99", against=f"the limit of {goal_ms} ms",
            ratio=f"{p99 / goal_ms:.2f}x", goal="<= 1x",
            note=f"p50 {_percentile(mine.frame_ms, 50):.0f} ms, p99 {p99:.0f} ms; from the oldest token of a frame p99 "
            f"{_percentile(mine.token_ms, 99):.0f} ms; frames of a stream {statistics.mean(mine.gap_ms):.0f} ms "
            f"apart, p99 {_percentile(mine.gap_ms, 99):.0f} ms; {mine.rate:.1f} tok/s each; all complete",
        ),
        Row(
            what=f"{what}, processor time per delivered token, all processes", against=f"the limit of {GOAL_US} us",
            ratio=f"{mine.token_us / GOAL_US:.2f}x", goal="<= 1x",
            note=f"{mine.token_us:.0f} us per token, {mine.frame_us:.0f} us per frame",
        ),
        Row(
            what=f"{what}, processor time per delivered token, all processes",
            against=f"the usual recipe at {USUAL_STREAMS} streams (more is better)",
            ratio=f"{peer.token_us / mine.token_us:.1f}x", goal=">= 50x",
            note=f"it takes {peer.token_us:.0f} us per token",
        ),
    ]  # fmt: skip


async def _streams(side: Side, count: int) -> _Streams:
    """Start ``count`` streams, measure for a while when all run, and check each to its end."""
    # Starting them takes a while, the last ones beside all that run; nobody may end before the window does.
    tokens = int(RATE * (WINDOW_S + 5 + count / STARTS_PER_S))
    readers = [await side.connect(number) for number in range(count)]
    asking = []
    for reader in readers:
        asking.append(asyncio.create_task(reader.ask("Tell me a long story.", tokens)))
        await asyncio.sleep(0.01)
    deadline_s = time.monotonic() + 30 + count / STARTS_PER_S
    while not all(reader.answer is not None and reader.answer.frames for reader in readers):
        _check([task.result() for task in asking if task.done()], tokens)
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{side.name}: not all of {count} streams began")
        await asyncio.sleep(0.05)
    cpu_s, began = side.cpu_s(), time.monotonic_ns()
    await asyncio.sleep(WINDOW_S)
    ended, cpu_s = time.monotonic_ns(), side.cpu_s() - cpu_s
    if any(task.done() for task in asking):
        raise RuntimeError(f"{side.name}: a stream ended before the window did")
    answers = await asyncio.wait_for(asyncio.gather(*asking), 300)
    for reader in readers:
        reader.close()
    _check(answers, tokens)
    # By when its tokens were made: reading the processes' times holds up this client, too.
    frames = [frame for answer in answers for frame in answer.frames if began <= frame[1] < ended]
    num_tokens = sum(count for *_, count in frames)
    arrivals = [[frame[0] for frame in answer.frames if began <= frame[1] < ended] for answer in answers]
    return _Streams(
        gap_ms=[(then - at) / 1e6 for each in arrivals for at, then in itertools.pairwise(each)],
        frame_ms=[(at - newest) / 1e6 for at, _, newest, _ in frames],
        token_ms=[(at - oldest) / 1e6 for at, oldest, _, _ in frames],
        tokens=num_tokens, frames=len(frames), cpu_s=cpu_s, rate=num_tokens / WINDOW_S / count,
    )  # fmt: skip


def _check(answers: Sequence[Answer], tokens: int) -> None:
    """Raise RuntimeError unless every answer is whole."""
    bad = [answer for answer in answers if answer.problem or answer.tokens != tokens]
    if bad:
        raise RuntimeError(
            f"{len(bad)} of {len(answers)} answers are not whole: {bad[0].problem or f'{bad[0].tokens} tokens'}"
        )


# --- idle sockets


def _idle_rows() -> list[Row]:
    with _directory() as directory, sides.ours(directory, step_ms=0, users=USERS) as ours:
        return asyncio.run(_idle(ours))


async def _idle(side: Side) -> list[Row]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, IDLE + 1000)), hard))
    before = side.web.memory_full_info().pss
    began_s = time.monotonic()
    readers: list[Reader] = []
    for start in range(0, IDLE, 50):
        readers += await asyncio.gather(*(side.connect(number) for number in range(start, min(IDLE, start + 50))))
    opening_s = time.monotonic() - began_s
    each = (side.web.memory_full_info().pss - before) / IDLE
    cpu = side.web.cpu_times()
    await asyncio.sleep(IDLE_S)
    used = side.web.cpu_times()
    share = (used.user + used.system - cpu.user - cpu.system) / IDLE_S
    lost = sum(reader.is_lost for reader in readers)
    if lost:
        raise RuntimeError(f"{lost} of {IDLE} idle sockets were lost")
    began_s = time.monotonic()
    for start in range(0, IDLE, USERS):
        # A message without words: it goes all the way to the consumer, which refuses it by name.
        asking = asyncio.gather(*(reader.ask("", SHORT) for reader in readers[start : start + USERS]))
        silent = [answer for answer in await asyncio.wait_for(asking, 60) if "empty_text" not in answer.problem]
        if silent:
            raise RuntimeError(f"an idle socket did not answer: {silent[0].problem}")
    probing_s = time.monotonic() - began_s
    # Some more, one of each user, are answered in full: all 10,000 would measure the queue.
    answers = await asyncio.wait_for(
        asyncio.gather(*(reader.ask("Still there?", SHORT) for reader in readers[:USERS])), 60
    )
    _check(answers, SHORT)
    for reader in readers:
        reader.close()
    return [
        Row(what=f"{IDLE} idle sockets on one daphne, memory each", against="the limit of 30 KB (PSS growth)",
            ratio=f"{each / 30_000:.2f}x", goal="<= 1x",
            note=f"{each / 1000:.1f} KB; opened in {opening_s:.0f} s; none lost"),
        Row(what=f"{IDLE} idle sockets for {IDLE_S:.0f} s", against="the limit of 15 % of a core",
            ratio=f"{share / 0.15:.2f}x", goal="<= 1x",
            note=f"{share:.1%} of a core; then each answered a probe, all in {probing_s:.0f} s, and {USERS} a message"),
    ]  # fmt: skip


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
