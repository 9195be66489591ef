"""The outbox of one socket: order, what is held back, and when a reader is too slow; and the flood guard beside it."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from chatproject.chat.flood import BURST_FRAMES, FRAMES_PER_S, MOST_REFUSED, FloodGuard
from chatproject.generations.streaming.outbox import GRACE_S, LIMIT_BYTES, MOST_BYTES, Outbox


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def outbox_and_alarms(clock: Clock | None = None) -> tuple[Outbox, list[str]]:
    alarms: list[str] = []
    return Outbox(on_too_slow=lambda: alarms.append("too slow"), clock=clock or Clock()), alarms


async def taken(outbox: Outbox) -> list[str]:
    outbox.close()
    found = []
    while (text := await outbox.take()) is not None:
        found.append(text)
    return found


async def test_frames_wait_for_their_acceptance_and_others_pass() -> None:
    outbox, _ = outbox_and_alarms()
    outbox.hold("a")
    outbox.put("a1", generation_id="a")
    outbox.put("b1", generation_id="b")
    outbox.put("a2", generation_id="a")
    outbox.release("a", "a accepted")
    outbox.put("a3", generation_id="a")
    assert await taken(outbox) == ["b1", "a accepted", "a1", "a2", "a3"]


async def test_frames_of_a_refused_generation_are_never_told() -> None:
    outbox, _ = outbox_and_alarms()
    outbox.hold("a")
    outbox.put("a1", generation_id="a")
    outbox.drop("a")
    assert outbox.num_bytes == 0
    assert await taken(outbox) == []


async def test_take_waits_for_the_next_frame() -> None:
    outbox, _ = outbox_and_alarms()
    waiting = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.put("x")
    assert await waiting == "x"


async def test_reader_that_takes_nothing_is_cut_off_after_the_grace() -> None:
    clock = Clock()
    outbox, alarms = outbox_and_alarms(clock)
    outbox.put("x" * LIMIT_BYTES)
    assert not outbox.is_full
    outbox.put("x")
    assert outbox.is_full
    clock.now += GRACE_S
    outbox.put("x")
    assert alarms == []
    clock.now += 0.1
    outbox.put("x")
    outbox.put("x")
    assert alarms == ["too slow"]
    assert outbox.num_bytes == 0
    assert await outbox.take() is None


async def test_reader_that_catches_up_within_the_grace_stays() -> None:
    clock = Clock()
    outbox, alarms = outbox_and_alarms(clock)
    for _ in range(3):
        outbox.put("x" * (LIMIT_BYTES + 1))
        clock.now += GRACE_S * 0.9
        await outbox.take()
    assert alarms == []


async def test_what_is_far_too_much_is_cut_off_at_once() -> None:
    outbox, alarms = outbox_and_alarms()
    for _ in range(9):
        outbox.put("€" * (MOST_BYTES // 24))  # three bytes each
    assert alarms == ["too slow"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["put", "hold", "release", "drop", "take"]), max_size=30))
def test_bytes_are_counted_exactly(steps: list[str]) -> None:
    async def play() -> None:
        outbox, _ = outbox_and_alarms()
        waiting, held, is_held = 0, 0, False
        for step in steps:
            if step == "put":
                outbox.put("é1", generation_id="a")
                waiting, held = (waiting, held + 1) if is_held else (waiting + 1, held)
            elif step == "hold" and not is_held:
                outbox.hold("a")
                is_held = True
            elif step == "release" and is_held:
                outbox.release("a", "é1")
                waiting, held, is_held = waiting + held + 1, 0, False
            elif step == "drop" and is_held:
                outbox.drop("a")
                held, is_held = 0, False
            elif step == "take" and waiting:
                await outbox.take()
                waiting -= 1
            assert outbox.num_bytes == 3 * (waiting + held)

    asyncio.run(play())


def test_burst_is_taken_then_the_rate_and_only_going_on_is_a_flood() -> None:
    clock = Clock()
    guard = FloodGuard(clock)
    assert [guard.take() for _ in range(BURST_FRAMES)] == [0.0] * BURST_FRAMES
    wait_s = guard.take()
    assert 0 < wait_s <= 1 / FRAMES_PER_S
    clock.now += wait_s
    assert guard.take() == 0.0
    for _ in range(MOST_REFUSED):
        assert guard.take() > 0
    assert not guard.is_flood
    guard.take()
    assert guard.is_flood
