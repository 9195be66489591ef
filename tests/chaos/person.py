"""What all virtual users have in common, whichever way they ask."""

from __future__ import annotations

import random
from typing import Any

from tests.chaos.chats import Chat, Wire
from tests.chaos.cluster import Cluster
from tests.chaos.history import History

MENDS_ITSELF = (
    "unavailable", "restarting", "queue_full", "rate_limited", "rate_limit_exceeded", "conversation_busy",
)  # fmt: skip


class Person:
    """Has one thing to ask; what they saw goes into the chat and the history."""

    def __init__(self, chat: Chat, cluster: Cluster, history: History, seed: int) -> None:
        self._chat, self._cluster, self._history, self._seed = chat, cluster, history, seed
        self._random = random.Random(f"{seed}/{chat.number}")
        self._key = cluster.users[chat.user]

    async def live(self) -> None:
        """Ask, and read the answer to its end; cancelled from outside when the run is over."""
        raise NotImplementedError

    def _chance(self, what: str) -> random.Random:
        """Return chance of its own, so that a new habit leaves the others as they were."""
        return random.Random(f"{self._seed}/{self._chat.number} {what}")

    def _params(self) -> dict[str, Any]:
        return {"max_tokens": self._chat.max_tokens, "seed": 1, **self._chat.wishes}

    def _before(self) -> Wire | None:
        """Return how the message before this one was accepted, if there is one and it was."""
        before = self._chat.after
        return before.accepted[0] if before is not None and before.accepted else None

    def _sends(self) -> None:
        self._chat.asked_at = self._chat.asked_at or self._history.now
        self._chat.num_sent += 1
        self._note("send")

    def _accepted(self, frame: Wire, *, is_timed: bool = True) -> None:
        """Take `accepted`, or what says the same; it is not timed where it came with the whole answer."""
        self._chat.accepted.append(frame)
        at = self._note("accepted", generation=frame["generation"])
        if is_timed:
            self._chat.accepted_at = self._chat.accepted_at or at

    def _tries_again(self, code: str) -> bool:
        """Take a refusal; say whether the same message is sent again."""
        self._note("refused", code=code)
        self._chat.refusals.append(code)
        if code in MENDS_ITSELF and not self._chat.gives_up:
            return True
        self._chat.refused = code
        return False

    def _note(self, kind: str, **fields: Any) -> float:
        return self._history.note(kind, chat=self._chat.number, **fields)
