"""A reader comes back while its log cannot be read: what it has must not come again. Found by the chaos harness."""

from __future__ import annotations

from chatproject.contract.frames import Frame, Log
from chatproject.generations.streaming.cursor import Cursor, Verdict

STARTED = Frame(generation_id="g", run=7, seq=1, kind="started")
FIRST = Frame(generation_id="g", run=7, seq=2, kind="delta", text="Mars ")
SECOND = Frame(generation_id="g", run=7, seq=3, kind="delta", at=5, text="is red")
LOG = Log(run=7, seq=3, text="Mars is red", frames=(STARTED, FIRST, SECOND))


def test_nothing_is_shown_again_and_the_first_log_replaces_the_text() -> None:
    for after in (1, 2, 3, 9):
        cursor = Cursor.without_log(after)
        assert {cursor.offer(frame) for frame in LOG.frames} == {Verdict.ASK_LOG}
        assert cursor.catch_up(Log(), with_end=False) == []
        assert cursor.catch_up(LOG, with_end=False) is None
        cursor.restart(LOG)
        assert cursor.catch_up(LOG, with_end=False) == []


def test_a_reader_that_has_nothing_is_shown_all() -> None:
    cursor = Cursor.without_log(0)
    assert cursor.catch_up(LOG, with_end=False) == [STARTED, FIRST, SECOND]
