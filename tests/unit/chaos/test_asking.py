"""Who asks what in a run."""

from __future__ import annotations

from tests.chaos import asking


def test_a_run_asks_in_every_way_and_continues_in_every_way() -> None:
    chats = asking.make_chats(100, ["alice", "bob"], 1)
    assert {chat.way for chat in chats} == set(asking.WAYS)
    assert {chat.kind for chat in chats} == {"new", "follow_up", "regenerate", "edit"}
    assert any(chat.is_twin and chat.gives_up for chat in chats)
    assert all(
        chat.after is None or (chat.after.number < chat.number and chat.after.user == chat.user) for chat in chats
    )
    assert [chat.text for chat in asking.make_chats(100, ["alice", "bob"], 1)] == [chat.text for chat in chats]
