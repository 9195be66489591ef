"""What should be nowhere: traces of messages that were refused, and news of what is another user's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tests.chaos.chats import Chat
from tests.chaos.person import MENDS_ITSELF


def of_refusals(chats: Sequence[Chat], database: Mapping[str, Any]) -> list[str]:
    """Return what is stored of a message that was refused for good, and what is charged or held for no message.

    One that was sent twice may have been accepted over the other connection.
    """
    rows = {(row["user"], row["client_id"]) for row in database["rows"]}
    asked, said = Counter(chat.text for chat in chats), set(database["said"])
    found = []
    for chat in chats:
        if not chat.refused or chat.num_sent > 1:
            continue
        if (chat.user, chat.client_id) in rows:
            found.append(f"chat {chat.number}: {chat.refused}, and there is a row")
        elif asked[chat.text] == 1 and chat.text in said:
            found.append(f"chat {chat.number}: {chat.refused}, and its text is stored")
    ids = {row["id"] for row in database["rows"]}
    found += [f"a ledger entry of no message: {id_}" for id_ in sorted(set(database["charged"]) - ids)]
    return found + [f"a reservation for no message: {id_}" for id_ in sorted(set(database["held"]) - ids)]


def without_cause(chats: Sequence[Chat]) -> list[str]:
    """Return the messages that were refused although nothing stood against them."""
    found = []
    for chat in chats:
        if chat.refused and chat.refused not in MENDS_ITSELF:
            found.append(f"chat {chat.number}: {chat.refused}")
        elif "conversation_busy" in chat.refusals and not chat.is_twin and chat.num_sent == 1:
            found.append(f"chat {chat.number}: its conversation was busy, and the answer before had ended")
    return found


def of_others(chats: Sequence[Chat], rows: Mapping[str, Any]) -> list[str]:
    """Return the news that reached a socket of another user than its generation's."""
    return [
        f"chat {chat.number}: a notice of {id_}"
        for chat in chats
        for id_ in sorted(chat.notices)
        if id_ not in rows or rows[id_]["user"] != chat.user
    ]
