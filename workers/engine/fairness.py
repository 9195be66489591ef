"""The waiting sequences of one lane, in the order of the one policy (`contract.fairness`) that claims go by too.

Knows no clock, no blocks and no engine; whose turn it is, is for the policy to say.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Final

from chatproject.contract import fairness, names
from chatproject.contract.fairness import INPUT_COST, OUTPUT_COST, FairUsers, LaneShares
from workers.engine.sequence import Sequence

MINIMUM_SHARES: Final[Mapping[int, float]] = {
    names.PRIORITY[lane]: share for lane, share in fairness.MINIMUM_SHARES.items()
}
_TIE: Final = 1.0  # cost within which two users are equal, and the one whose prefix is computed already goes first


class FairQueue:
    """Users by the policy, one user's own in order of arrival."""

    def __init__(self, num_cached: Callable[[Sequence], int] = lambda seq: 0) -> None:
        """Break ties between users by ``num_cached``: what is computed already is cheapest to serve now."""
        self._num_cached = num_cached
        self.users = FairUsers()
        self._by_user: dict[str, list[tuple[tuple[int, int], Sequence]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, seq: Sequence) -> None:
        """Put ``seq`` in line; one that was preempted is back at the front of its user's line by its age."""
        line = self._by_user.get(seq.user_id)
        if line is None:
            line = self._by_user[seq.user_id] = []
            self.users.join(seq.user_id)
        heapq.heappush(line, (seq.order, seq))
        self._length += 1

    def head(self) -> Sequence | None:
        """Return whose turn it is, without taking it."""
        if not self._by_user:
            return None
        turns = self.users.turns
        least = min(turns.values())
        heads = [line[0][1] for user, line in self._by_user.items() if turns[user] < least + _TIE]
        if len(heads) == 1:
            return heads[0]
        return min(heads, key=lambda seq: (-self._num_cached(seq), turns[seq.user_id]))

    def remove(self, seq: Sequence) -> None:
        """Take ``seq`` out of the line, wherever it stands."""
        line = self._by_user[seq.user_id]
        if line[0][1] is seq:
            heapq.heappop(line)
        else:
            line.remove((seq.order, seq))
            heapq.heapify(line)
        self._length -= 1
        if not line:
            del self._by_user[seq.user_id]
            self.users.leave(seq.user_id)

    def start(self, seq: Sequence) -> None:
        """Take ``seq`` out because it starts, and charge its prompt, once."""
        # What a preemption makes it compute again is our cost, not the user's.
        cost = 0.0 if seq.has_started else INPUT_COST * seq.num_pending
        self.users.take(seq.user_id, cost, seq.weight, still_waits=True)
        self.remove(seq)

    def served_token(self, seq: Sequence) -> None:
        """Charge one token of an answer."""
        self.users.charge(seq.user_id, OUTPUT_COST, seq.weight)


__all__ = ["MINIMUM_SHARES", "FairQueue", "LaneShares"]
