"""Each invariant can break: what chaos must see of refusals, of others' news, of two at once and of spare tickets."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import checker, onlooker, spare_tickets
from tests.chaos.chats import Chat
from tests.servers import wait_until

EMPTY: dict[str, Any] = {"rows": [], "charged": [], "held": [], "said": [], "reserved": 0}
ROW = {
    "id": "g", "user": "alice", "client_id": "c", "status": "done", "answer": "", "code": "", "sha256": "",
    "thread": "t", "completion_tokens": 1, "reason": "length", "deaths": 0,
}  # fmt: skip


def broken(*chats: Chat, database: dict[str, Any] | None = None, **seen: Any) -> dict[str, list[str]]:
    return checker.check(chats, [], EMPTY | (database or {}), [], **seen).broken


def asked(**fields: Any) -> Chat:
    return Chat(
        **{"number": 1, "client_id": "c", "user": "alice", "text": "hello", "max_tokens": 1, "num_sent": 1} | fields
    )


@pytest.mark.parametrize(
    "trace",
    [{"rows": [ROW]}, {"said": ["hello"]}, {"charged": ["g"]}, {"held": ["g"]}],
    ids=lambda trace: next(iter(trace)),
)
def test_a_refusal_that_left_a_trace_is_seen(trace: dict[str, Any]) -> None:
    refused = asked(refused="queue_full", refusals=["queue_full"], gives_up=True)
    assert broken(refused, database=trace)["traces of refusals"]
    assert not broken(refused)["traces of refusals"]


def test_a_message_that_was_sent_twice_may_be_stored_although_one_of_them_was_refused() -> None:
    refused = asked(refused="queue_full", refusals=["queue_full"], gives_up=True, num_sent=2)
    assert not broken(refused, database={"rows": [ROW]})["traces of refusals"]


def test_who_is_refused_without_cause_is_seen() -> None:
    def is_seen(**fields: Any) -> bool:
        return bool(broken(asked(**fields))["refused without cause"])

    assert is_seen(refused="bad_params", refusals=["bad_params"])
    assert is_seen(refusals=["conversation_busy"])  # sent again, and accepted then
    assert not is_seen(refusals=["conversation_busy"], is_twin=True)
    assert not is_seen(refused="queue_full", refusals=["queue_full"], gives_up=True)


def test_news_of_another_users_answer_and_frames_before_accepted_are_foreign() -> None:
    database = {"rows": [ROW]}
    assert not broken(asked(notices={"g"}), database=database)["foreign"]
    assert broken(asked(notices={"g"}, user="bob"), database=database)["foreign"]
    assert broken(asked(notices={"nobody's"}), database=database)["foreign"]
    assert broken(asked(problems=["foreign: queued of h"]))["foreign"]


def test_two_answers_under_way_in_one_conversation_are_seen_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "chat.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE generations_generation (thread TEXT, status TEXT)")

        def say(*rows: tuple[str | None, str]) -> None:
            looks = seen.looks
            database.execute("DELETE FROM generations_generation")
            database.executemany("INSERT INTO generations_generation VALUES (?, ?)", rows)
            wait_until(lambda: seen.looks > looks + 1, 20)

        with onlooker.looking(f"sqlite:///{path}") as seen:
            say(("a", "accepted"), ("a", "done"), ("b", "accepted"), (None, "accepted"), (None, "accepted"))
            assert not seen.busy_twice
            say(("a", "accepted"), ("a", "accepted"))
            say()
        assert seen.busy_twice == {"a"}
    assert broken(busy_twice=["a"])["one live answer per conversation"]


def test_what_a_spare_ticket_starts_is_seen(tmp_path: Path) -> None:
    line = "[2026-11-29: INFO/MainProcess] Task chat.generate[aa-1]"
    (tmp_path / "worker-w1.log").write_text(f"{line} received\n{line} succeeded in 0.1s: 'length'\n")
    (tmp_path / "worker-w2.log").write_text(f"{line} received\n")
    assert spare_tickets.received(tmp_path) == Counter({"aa-1": 2})
    assert broken(started=["aa-1 was started 1 times"])["a spare ticket starts nothing"]
