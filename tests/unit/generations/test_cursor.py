"""What a reader is shown has no gap and no repeat, whatever the channel layer loses, doubles or reorders."""

from __future__ import annotations

import random

import pytest

from chatproject.contract.errors import FinishReason
from chatproject.contract.frames import End, Frame, Log
from chatproject.generations.streaming.cursor import Cursor, Verdict

END = End(status="done", reason=FinishReason.STOP)


def story(num_deltas: int, *, run: int = 7) -> list[Frame]:
    frames = [Frame(generation_id="g", run=run, seq=1, kind="started")]
    at = 0
    for index in range(num_deltas):
        text = "abcdefg"[: 1 + index % 7]
        frames.append(Frame(generation_id="g", run=run, seq=index + 2, kind="delta", at=at, text=text))
        at += len(text)
    return [*frames, Frame(generation_id="g", run=run, seq=num_deltas + 2, kind="end", at=at, end=END)]


def log_of(frames: list[Frame]) -> Log:
    last = frames[-1] if frames else None
    return Log(
        run=last.run if last else 0, seq=last.seq if last else 0, text="".join(frame.text for frame in frames),
        frames=tuple(frames), end=last.end if last else None, end_seq=last.seq if last and last.end else 0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(200))
def test_every_reader_sees_the_story_once_in_order(seed: int) -> None:
    chance = random.Random(seed)
    frames = story(chance.randrange(30))
    # Live frames: some lost, some twice, some late.
    live = [frame for frame in frames if chance.random() > 0.2 for _ in range(1 + (chance.random() < 0.2))]
    for _ in range(len(live) // 5):
        at = chance.randrange(len(live))
        live.insert(min(len(live), at + chance.randrange(4)), live.pop(at))
    cursor, shown = Cursor(), []
    for frame in live:
        verdict = cursor.offer(frame)
        if verdict is Verdict.SHOW:
            shown.append(frame)
        elif verdict is Verdict.ASK_LOG:
            known = frames[: max(frame.seq, 1)]
            shown += cursor.catch_up(log_of(known), with_end=chance.random() < 0.5) or []
    shown += cursor.catch_up(log_of(frames), with_end=True) or []
    assert shown == frames
    assert cursor.is_ended


def test_a_lower_run_is_ignored() -> None:
    cursor = Cursor()
    new = story(2, run=9)
    assert cursor.offer(new[0]) is Verdict.SHOW
    assert cursor.offer(story(2, run=7)[1]) is Verdict.IGNORE


def test_a_story_that_changed_is_told_from_the_log() -> None:
    """Redis lost the log and its worker died: the new run writes other text under numbers already shown."""
    old, new = story(5, run=7), story(3, run=9)
    cursor = Cursor()
    for frame in old[:4]:
        cursor.offer(frame)
    changed = Frame(generation_id="g", run=9, seq=2, kind="delta", at=0, text="other")
    assert cursor.offer(changed) is Verdict.ASK_LOG
    log = log_of([new[0], changed])
    assert cursor.catch_up(log, with_end=False) is None
    cursor.restart(log)
    assert (cursor.seq, cursor.characters, cursor.run) == (2, 5, 9)
    assert cursor.offer(Frame(generation_id="g", run=9, seq=3, kind="delta", at=5, text="!")) is Verdict.SHOW


def test_a_log_written_again_from_memory_changes_nothing_for_the_reader() -> None:
    frames = story(5, run=7)
    cursor = Cursor()
    for frame in frames[:4]:
        cursor.offer(frame)
    assert list(cursor.catch_up(log_of(frames[:2]), with_end=False) or []) == []  # half written again
    assert list(cursor.catch_up(log_of(frames), with_end=True) or []) == frames[4:]


def test_a_row_that_stands_for_its_log_is_told_whole_and_not_as_a_late_piece() -> None:
    row = Log(
        run=0, seq=9, text="all of it", end=END, end_seq=9, is_stored=True,
        frames=(
            Frame(generation_id="g", run=0, seq=8, kind="delta", text="all of it"),
            Frame(generation_id="g", run=0, seq=9, kind="end", at=9, end=END),
        ),
    )  # fmt: skip
    cursor = Cursor()
    assert cursor.catch_up(row, with_end=True) is None
    cursor.restart(row)
    assert [frame.kind for frame in cursor.catch_up(row, with_end=True) or []] == ["end"]


def test_an_end_that_is_not_stored_is_not_shown() -> None:
    frames = story(2)
    cursor = Cursor()
    assert list(cursor.catch_up(log_of(frames), with_end=False) or []) == frames[:-1]
    assert not cursor.is_ended
    assert cursor.offer(frames[-1]) is Verdict.SHOW
