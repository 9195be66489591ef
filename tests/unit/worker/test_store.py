"""Appending to many logs at once, over a real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatproject.contract import names
from workers.store import MOST_FIELDS, Entry, Store

pytestmark = pytest.mark.needs("redis")
RUN = 1_700_000_000_000
MESSAGES = [("chat.web.a", b"to a"), ("chat.web.b", b"to b")]


@pytest.fixture
def store(fresh_redis_url: str) -> Iterator[Store]:
    made = Store(fresh_redis_url)
    yield made
    made.client.close()


def entries(first: int, last: int) -> list[Entry]:
    return [
        (f"{RUN}-{seq}", {"k": "delta", "at": str(5 * seq), "t": "word ", "n": str(seq)})
        for seq in range(first, last + 1)
    ]


def test_a_log_that_takes_nothing_stops_no_other(store: Store) -> None:
    store.client.set(names.log_key("spoilt"), "not a log")
    store.append([("short", RUN, "", entries(1, 2)), ("newer", RUN, "", entries(1, 1))])
    store.client.xadd(names.log_key("newer"), {"k": "start"}, id=f"{RUN + 1}-0")
    answers = store.append(
        [
            ("first", RUN, "", entries(1, 3)),
            ("spoilt", RUN, "", entries(1, 1)),
            ("short", RUN, f"{RUN}-3", entries(4, 4)),
            ("gone", RUN, f"{RUN}-1", entries(2, 2)),
            ("newer", RUN, f"{RUN}-1", entries(2, 2)),
            ("last", RUN, "", entries(1, 1)),
        ]
    )
    assert answers[0] == answers[5] == "ok"
    assert answers[1].startswith("failed:WRONGTYPE")
    assert answers[2:5] == [f"short:{RUN}-2", "gone", "newer"]
    assert store.client.xlen(names.log_key("first")) == 3
    assert store.client.xrange(names.log_key("last")) == entries(1, 1)
    assert store.client.xlen(names.log_key("short")) == 2
    assert not store.client.exists(names.log_key("gone"))
    assert 0 < store.client.pttl(names.log_key("first")) <= names.LOG_MS


def test_messages_are_sent_after_all_logs_took_their_own_and_only_then(store: Store) -> None:
    heard = store.client.pubsub(ignore_subscribe_messages=True)
    heard.subscribe("chat.web.a", "chat.web.b")
    whole = entries(1, MOST_FIELDS // 8 + 1)  # more than go into one call with another

    def texts() -> list[str]:
        store.client.publish("chat.web.a", "that is all")
        found: list[str] = []
        while found[-1:] != ["that is all"]:
            message = heard.get_message(timeout=5)
            found += [message["data"]] if message else []
        return found[:-1]

    assert store.append([("a", RUN, "", entries(1, 1)), ("b", RUN, "", entries(1, 1))], MESSAGES) == ["ok", "ok"]
    assert texts() == ["to a", "to b"]
    mixed = [("a", RUN, f"{RUN}-1", entries(2, 2)), ("b", RUN, "", entries(2, 2)), ("c", RUN, "", entries(1, 1))]
    assert store.append(mixed, MESSAGES) == ["ok", f"short:{RUN}-1", "ok"]
    assert texts() == []
    long, longer = [(id_, RUN, "", whole) for id_ in ("d", "e")], [(id_, RUN, "", whole) for id_ in ("f", "g")]
    before = num_calls(store)
    assert store.append(long, MESSAGES) == ["ok", "ok"]
    assert num_calls(store) - before == 2
    assert texts() == ["to a", "to b"]
    longer[0] = ("f", RUN, f"{RUN}-7", whole)
    assert store.append(longer, MESSAGES) == ["gone", "ok"]
    assert texts() == []


def test_a_redis_that_forgot_its_scripts_is_told_them(store: Store) -> None:
    assert store.append([("a", RUN, "", entries(1, 1))]) == ["ok"]
    store.client.script_flush()
    assert store.append([("a", RUN, f"{RUN}-1", entries(2, 2))]) == ["ok"]


def test_short_pieces_share_a_call_and_long_logs_do_not(store: Store) -> None:
    """Redis serves nobody during a call, and before version 7 refused a million arguments, again at every try."""
    whole = entries(1, 500)
    before = num_calls(store)
    assert store.append([(f"g{number}", RUN, "", whole) for number in range(64)]) == ["ok"] * 64
    assert num_calls(store) - before >= 64
    before = num_calls(store)
    assert store.append([(f"g{number}", RUN, f"{RUN}-500", entries(501, 502)) for number in range(64)]) == ["ok"] * 64
    assert num_calls(store) - before == 1
    assert store.append([]) == []
    assert [store.client.xlen(names.log_key(f"g{number}")) for number in range(64)] == [502] * 64


def num_calls(store: Store) -> int:
    calls: int = store.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls
