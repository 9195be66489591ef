"""Decide whose turn it is: fair between the users of a lane, and a minimum share for every lane.

Pure arithmetic on names and counts. Knows no clock, no blocks and no engine; whoever claims work may use it too.
Source: Sheng et al. 2024, Fairness in Serving Large Language Models (arXiv:2401.00588), algorithms 2 and 4.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from typing import Final

from workers.engine.sequence import Sequence

INPUT_COST: Final = 1.0  # of a prompt token
OUTPUT_COST: Final = 2.0  # of an answer token: it takes a row of a step for itself

# Shares of the served tokens that a waiting lane gets at the least, by priority; the top lane needs none.
MINIMUM_SHARES: Final[Mapping[int, float]] = {3: 0.10, 6: 0.05, 9: 0.02}
_PRUNE_AT = 1024


class VirtualTokenCounter:
    """Service each user has had, in weighted tokens. Who had least goes first; who was away is not owed for it."""

    def __init__(self) -> None:
        self.served: dict[str, float] = {}
        self._last_user = ""  # who left the queue last

    def lift(self, user_id: str, waiting: Collection[str]) -> None:
        """Call when a user who had nothing waiting has something now; ``waiting`` are the others that wait."""
        floor = min((self.served.get(other, 0.0) for other in waiting), default=None)
        if floor is None:
            floor = self.served.get(self._last_user, 0.0)
        if len(self.served) > _PRUNE_AT:
            # Whoever is at or below the floor would be lifted to it anyway, so nothing is forgotten.
            self.served = {
                user: had
                for user, had in self.served.items()
                if had > floor or user in waiting or user == self._last_user
            }
        self.served[user_id] = max(self.served.get(user_id, 0.0), floor)

    def left(self, user_id: str) -> None:
        """Call when a user has nothing waiting any more."""
        self._last_user = user_id

    def charge(self, user_id: str, cost: float, weight: float) -> None:
        """Count service; a user of weight 2 may have twice as much."""
        self.served[user_id] = self.served.get(user_id, 0.0) + cost / weight


class FairQueue:
    """The waiting sequences of one lane: users by least service, one user's own in order of arrival."""

    def __init__(self, num_cached: Callable[[Sequence], int] = lambda seq: 0) -> None:
        """Break ties between users by ``num_cached``: what is computed already is cheapest to serve now."""
        self._num_cached = num_cached
        self.counter = VirtualTokenCounter()
        self._by_user: dict[str, list[tuple[tuple[int, int], Sequence]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, seq: Sequence) -> None:
        """Put ``seq`` in line; one that was preempted is back at the front of its user's line by its age."""
        line = self._by_user.get(seq.user_id)
        if line is None:
            if not seq.has_started:
                self.counter.lift(seq.user_id, self._by_user.keys())
            line = self._by_user[seq.user_id] = []
        heapq.heappush(line, (seq.order, seq))
        self._length += 1

    def head(self) -> Sequence | None:
        """Return whose turn it is, without taking it."""
        if not self._by_user:
            return None
        served = self.counter.served
        least = min(served.get(user, 0.0) for user in self._by_user)
        heads = [line[0][1] for user, line in self._by_user.items() if served.get(user, 0.0) == least]
        if len(heads) == 1:
            return heads[0]
        return min(heads, key=lambda seq: (-self._num_cached(seq), seq.order))

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
            self.counter.left(seq.user_id)


class LaneShares:
    """Credit of lanes that wait: their minimum share of what was served since, less what they were served."""

    def __init__(self, minimum: Mapping[int, float] = MINIMUM_SHARES) -> None:
        self._minimum = minimum
        self._credit: dict[int, float] = {}

    def account(self, waiting: Collection[int], served: Mapping[int, int]) -> None:
        """Count one step: the lanes that wait now, and the tokens each lane was served in it."""
        total = sum(served.values())
        # A lane that stops waiting is owed nothing; one that had more than its share owes nothing either.
        self._credit = {
            lane: max(0.0, self._credit.get(lane, 0.0) + self._minimum.get(lane, 0.0) * total - served.get(lane, 0))
            for lane in waiting
        }

    def clear(self) -> None:
        """Nobody waits: nothing is owed."""
        self._credit.clear()

    def credit(self, lane: int) -> float:
        """Return the tokens that ``lane`` is owed."""
        return self._credit.get(lane, 0.0)
