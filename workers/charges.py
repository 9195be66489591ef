"""What the generations here really take, against what their users were charged when they were claimed.

A claim charges what a generation is expected to cost, because many claims come before the first token (Sheng et al.
2024, algorithm 3). What it takes beyond that is charged as it grows; what it did not take is given back at its end.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from chatproject.contract.fairness import BYTES_PER_TOKEN, INPUT_COST, OUTPUT_COST, About, Costs
from chatproject.contract.names import LANES, Lane
from workers.store import AWAY, Claim, Store

FIRST_GUESS_TOKENS: Final = 64.0
LEARNING_RATE: Final = 0.1  # weight of the newest answer in the mean length, once ten are known
MODEST: Final = 1.0  # cost that is not worth a round trip

User = tuple[str, Lane, str, float]  # model, lane, user id, weight


@dataclass(slots=True)
class _Service:
    user: User
    cost: float
    charged: float
    num_output: int = 0


class _MeanLength:
    """Mean length of a lane's answers: of all, then of about the last ten."""

    def __init__(self) -> None:
        self.tokens = FIRST_GUESS_TOKENS
        self._num_seen = 0

    def learn(self, num_tokens: int) -> None:
        self._num_seen += 1
        self.tokens += max(LEARNING_RATE, 1 / self._num_seen) * (num_tokens - self.tokens)


class Charges:
    """Thread-safe; `took` is called by the engine thread alone."""

    def __init__(self) -> None:
        self._lengths = {lane: _MeanLength() for lane in LANES}
        self._lock = threading.Lock()
        self._running: dict[str, _Service] = {}
        self._due: dict[User, float] = {}

    def expected_costs(self) -> Costs:
        """Return what to charge at a claim: right on average in each lane, or its minimum share would not be."""
        per_lane = {lane: OUTPUT_COST * length.tokens for lane, length in self._lengths.items()}
        return Costs(per_byte=INPUT_COST / BYTES_PER_TOKEN, per_lane=per_lane)

    def expected_cost(self, lane: Lane, about: About) -> float:
        """Return what to charge at the claim of one."""
        return self.expected_costs().of(lane, about)

    def begin(self, sequence_id: str, claim: Claim, num_prompt: int) -> None:
        """Count a sequence that goes to the engine. A prompt was paid for by the run that gave its first token."""
        cost = 0.0 if claim.prefix.tokens else INPUT_COST * num_prompt
        with self._lock:
            self._running[sequence_id] = _Service(_user_of(claim), cost, claim.charged)

    def took(self, sequence_id: str, num_tokens: int) -> None:
        """Count answer tokens."""
        service = self._running.get(sequence_id)
        if service is not None:
            service.num_output += num_tokens
            service.cost += OUTPUT_COST * num_tokens

    def end(self, sequence_id: str, *, is_complete: bool = False) -> None:
        """Settle a sequence that has ended or was dropped; one that gave no token costs nothing."""
        with self._lock:
            service = self._running.pop(sequence_id, None)
            if service is None:
                return
            if is_complete:
                self._lengths[service.user[1]].learn(service.num_output)
            self._owe(service.user, (service.cost if service.num_output else 0.0) - service.charged)

    def give_back(self, claim: Claim) -> None:
        """Give back the charge of a claim that never came to the engine."""
        with self._lock:
            self._owe(_user_of(claim), -claim.charged)

    def flush(self, store: Store) -> None:
        """Charge what is due. Raises one of AWAY: it stays due then."""
        with self._lock:
            for service in self._running.values():
                if service.cost > service.charged + MODEST:
                    self._owe(service.user, service.cost - service.charged)
                    service.charged = service.cost
            due = {user: cost for user, cost in self._due.items() if abs(cost) >= MODEST}
            for user in due:
                del self._due[user]
        try:
            store.charge([(*user, cost) for user, cost in due.items()])
        except AWAY:
            with self._lock:
                for user, cost in due.items():
                    self._owe(user, cost)
            raise

    def _owe(self, user: User, cost: float) -> None:
        self._due[user] = self._due.get(user, 0.0) + cost


def _user_of(claim: Claim) -> User:
    request = claim.request
    return request.model, request.lane, request.user_id, max(request.weight, 1e-3)
