"""Decide whose turn it is: fair between the users of a lane, and a minimum share for every lane.

Pure arithmetic on names and counts; knows no clock, no chance, no Redis and no engine. One policy for three: the engine
orders its prefills by it; the workers claim by it, with the same numbers in Redis, shared by all of them
(`contract.scripts`); a place in the queue is told by running it forward (`claim_order`).
Source: Sheng et al. 2024, Fairness in Serving Large Language Models (arXiv:2401.00588), algorithms 2 to 4.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

from chatproject.contract.messages import GenerationRequest
from chatproject.contract.names import LANES, Lane

INPUT_COST: Final = 1.0  # of a prompt token
OUTPUT_COST: Final = 2.0  # of an answer token: it takes a row of a step for itself
BYTES_PER_TOKEN: Final = 4  # what a prompt will cost, before anybody has encoded it

# Shares of the service that a waiting lane gets at the least; the top lane needs none.
MINIMUM_SHARES: Final[Mapping[Lane, float]] = {
    Lane.VIP: 0.0, Lane.INTERACTIVE: 0.10, Lane.BACKGROUND: 0.05, Lane.BATCH: 0.02,
}  # fmt: skip
# Who waits while the lane serves 16 tokens of cost is credited one: so no stream of newcomers, each lifted to the
# floor, can keep out a user who had much before. It orders turns only; what users have had in the long run is equal.
AGEING: Final = 1 / 16
# The lane's clock moves by this with everyone who joins, so that among equals the first to come is the first.
HAIR: Final = 1 / 1024

MAX_ATTEMPTS: Final = 3  # runs that may die; a worker holds one generation at most that is on its last
PRUNE_AT: Final = 1024  # users remembered per lane before those who are owed nothing are forgotten

_LaneT = TypeVar("_LaneT", bound=Hashable)


class FairUsers:
    """The users of one lane: what each has had, and who of those that wait goes first."""

    def __init__(self) -> None:
        self.served: dict[str, float] = {}  # service had, in weighted cost; who is unknown has had ``floor``
        self.turns: dict[str, float] = {}  # of those who wait: the smallest is next
        self.floor = 0.0  # the service that the last one chosen had had: who was away is lifted to it
        self.clock = 0.0  # expected cost of all who were chosen so far

    def join(self, user: str) -> None:
        """Call when a user who had nothing waiting has something now. Who was away is not owed for it."""
        if user in self.turns:
            return
        if len(self.served) > PRUNE_AT:
            # Whoever is at or below the floor would be lifted to it anyway, so nothing is forgotten.
            self.served = {name: had for name, had in self.served.items() if had > self.floor or name in self.turns}
        self.served[user] = max(self.served.get(user, 0.0), self.floor)
        self.clock += HAIR
        self.turns[user] = turn_of(self.served[user], self.clock)

    def leave(self, user: str) -> None:
        """Call when a user has nothing waiting any more."""
        self.turns.pop(user, None)

    def first(self) -> str | None:
        """Return whose turn it is."""
        return min(self.turns, key=self.turns.__getitem__, default=None)

    def take(self, user: str, cost: float, weight: float, *, still_waits: bool) -> None:
        """Count that ``user`` was chosen, at an expected ``cost``; what it really takes is charged later."""
        had = self.served.get(user, self.floor)
        self.floor = max(self.floor, had)
        self.served[user] = had + cost / weight
        self.clock += cost
        self.turns.pop(user, None)
        if still_waits:
            self.turns[user] = turn_of(self.served[user], self.clock)

    def charge(self, user: str, cost: float, weight: float) -> None:
        """Count service, or give back (negative) what was expected and not taken. Weight 2 may have twice as much."""
        self.served[user] = self.served.get(user, self.floor) + cost / weight
        if user in self.turns:
            self.turns[user] += cost / weight


class LaneShares(Generic[_LaneT]):
    """Credit of lanes that wait: their minimum share of what was served since, less what they were served.

    Where costs are expected ones, these alone are counted: what is given back later would look like a debt to a lane
    that had more than its share.
    """

    def __init__(self, minimum: Mapping[_LaneT, float], credit: Mapping[_LaneT, float] | None = None) -> None:
        self._minimum = minimum
        self._credit: dict[_LaneT, float] = dict(credit or {})

    def account(self, waiting: Collection[_LaneT], served: Mapping[_LaneT, float]) -> None:
        """Count service: the lanes that wait now, and the cost each lane was served."""
        total = sum(served.values())
        # A lane that stops waiting is owed nothing; one that had more than its share owes nothing either.
        self._credit = {
            lane: max(0.0, self._credit.get(lane, 0.0) + self._minimum.get(lane, 0.0) * total - served.get(lane, 0))
            for lane in waiting
        }

    def clear(self) -> None:
        """Nobody waits: nothing is owed."""
        self._credit.clear()

    def credit(self, lane: _LaneT) -> float:
        """Return the cost that ``lane`` is owed."""
        return self._credit.get(lane, 0.0)

    def owed(self, waiting: Iterable[tuple[_LaneT, float]]) -> list[_LaneT]:
        """Return the lanes that come before their rank: (lane, cost of its head) in order of rank."""
        return [lane for lane, cost in list(waiting)[1:] if self.credit(lane) >= cost]


def turn_of(served: float, clock: float) -> float:
    """Return the place of a user who has had ``served`` and waits since ``clock``; the smallest is next."""
    return served + AGEING * clock


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the policy must know of one that waits, without reading its request."""

    user_id: str
    weight: float = 1.0
    attempt: int = 1
    expires_ms: int = 0  # 0 = never
    num_bytes: int = 0  # of the prompt as text, about

    @classmethod
    def of(cls, request: GenerationRequest) -> Self:
        """Return what is kept of ``request``."""
        return cls(
            user_id=request.user_id, weight=request.weight, attempt=request.attempt, expires_ms=request.expires_ms,
            num_bytes=sum(len(turn.text) for turn in request.turns),
        )  # fmt: skip

    def __str__(self) -> str:
        weight = max(self.weight, 1e-3)
        return f"{weight:.6g} {self.attempt} {self.expires_ms} {self.num_bytes} {self.user_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` gave."""
        weight, attempt, expires_ms, num_bytes, user_id = text.split(" ", 4)
        return cls(
            user_id=user_id, weight=float(weight), attempt=int(attempt), expires_ms=int(expires_ms),
            num_bytes=int(num_bytes),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingUser:
    """A user who waits in a lane, as it stood when it was looked at."""

    user_id: str
    turn: float
    served: float
    num_waiting: int
    first: tuple[tuple[str, About], ...]  # the first of the user's line: (generation id, about)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLane:
    """One lane as it stood when it was looked at."""

    lane: Lane
    num_waiting: int
    credit: float
    clock: float
    users: tuple[WaitingUser, ...]  # those whose turn is next, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One that could be claimed now."""

    lane: Lane
    generation_id: str
    about: About
    is_guaranteed: bool  # it is its lane's minimum share: nobody is to push it out


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What to charge at a claim."""

    per_byte: float  # of the prompt as text
    per_lane: Mapping[Lane, float]  # of its usual answer

    def of(self, lane: Lane, about: About) -> float:
        """Return the expected cost of one."""
        return self.per_byte * about.num_bytes + self.per_lane[lane]


ExpectedCost = Callable[[Lane, About], float]


def candidates(
    lanes: Sequence[WaitingLane], expected_cost: ExpectedCost, *, takes_last: bool = True
) -> list[Candidate]:
    """Return who may be claimed, best first. Without ``takes_last`` nobody who is on the last attempt."""
    lines = {lane.lane: _of_lane(lane, takes_last) for lane in lanes}
    heads = [(lane, expected_cost(lane, line[0].about)) for lane, line in lines.items() if line]
    shares = LaneShares(MINIMUM_SHARES, {lane.lane: lane.credit for lane in lanes})
    first = []
    for lane in shares.owed(heads):
        head = lines[lane].pop(0)
        first.append(Candidate(lane=lane, generation_id=head.generation_id, about=head.about, is_guaranteed=True))
    return first + [candidate for line in lines.values() for candidate in line]


def claim_order(lanes: Sequence[WaitingLane], cost: float, *, limit: int) -> Iterator[tuple[Lane, str]]:
    """Run the policy forward at ``cost`` per claim: (lane, user) of each claim, the next first, ``limit`` at most.

    Ends early where the look that gave ``lanes`` ends: a user beyond it could be next.
    """
    cost = max(cost, 1.0)
    shares = LaneShares(MINIMUM_SHARES, {lane.lane: lane.credit for lane in lanes})
    left = {lane.lane: lane.num_waiting for lane in lanes if lane.num_waiting}
    clocks = {lane.lane: lane.clock for lane in lanes}
    heaps = {lane.lane: [(user.turn, place) for place, user in enumerate(lane.users)] for lane in lanes}
    users = {lane.lane: lane.users for lane in lanes}
    taken = {lane.lane: [0] * len(lane.users) for lane in lanes}
    served = {lane.lane: [user.served for user in lane.users] for lane in lanes}
    for heap in heaps.values():
        heapq.heapify(heap)
    for _ in range(limit):
        ranked = [lane for lane in LANES if left.get(lane)]
        owed = shares.owed((lane, cost) for lane in ranked)
        lane = next(iter(owed or ranked), None)
        if lane is None or not heaps[lane]:
            return
        _, place = heapq.heappop(heaps[lane])
        user = users[lane][place]
        yield lane, user.user_id
        clocks[lane] += cost
        left[lane] -= 1
        taken[lane][place] += 1
        if taken[lane][place] < user.num_waiting:
            weight = user.first[0][1].weight if user.first else 1.0
            served[lane][place] += cost / weight
            heapq.heappush(heaps[lane], (turn_of(served[lane][place], clocks[lane]), place))
        shares.account([other for other, count in left.items() if count], {lane: cost})


def waiting_lanes(answer: Any) -> tuple[float, list[WaitingLane]]:
    """Read what the script `look` answered: the mean cost of a claim, and each lane."""
    cost, rows = answer
    lanes = []
    for lane, (num_waiting, credit, clock, users) in zip(LANES, rows, strict=True):
        found = tuple(
            WaitingUser(
                user_id=user_id, turn=float(turn), served=float(served), num_waiting=count,
                first=tuple((id_, About.parse(about)) for id_, about in zip(*[iter(first)] * 2, strict=True)),
            )
            for user_id, turn, served, count, first in users
        )  # fmt: skip
        lanes.append(
            WaitingLane(lane=lane, num_waiting=num_waiting, credit=float(credit), clock=float(clock), users=found)
        )
    return float(cost), lanes


def _of_lane(lane: WaitingLane, takes_last: bool) -> list[Candidate]:
    """Return the candidates of a lane: each user's first by turn, then each one's second, and so on."""
    depth = max((len(user.first) for user in lane.users), default=0)
    return [
        Candidate(lane=lane.lane, generation_id=id_, about=about, is_guaranteed=False)
        for place in range(depth)
        for user in lane.users
        for id_, about in user.first[place : place + 1]
        if takes_last or about.attempt < MAX_ATTEMPTS
    ]
