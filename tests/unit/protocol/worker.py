"""A worker of the simulation: the product's claiming, publisher, leases and charges around an engine of three lines.

Token k of a run is named after the run, so that two runs mixed in one answer are seen, as on a GPU.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from chatproject.contract import names
from chatproject.contract.fairness import MAX_ATTEMPTS
from chatproject.contract.messages import WorkerStatus
from tests.unit.protocol.world import Event, Process
from workers import claiming
from workers.charges import Charges
from workers.engine.interfaces import Finish, StepOutput
from workers.generation import ActiveGeneration
from workers.leases import Leases
from workers.publisher import Publisher
from workers.store import AWAY, Claim

if TYPE_CHECKING:
    from tests.unit.protocol.history import History

STEP_S = 0.3
PLACES = 4


class Sequence:
    """One generation in the engine."""

    def __init__(self, claim: Claim, max_tokens: int) -> None:
        self.claim, self.max_tokens = claim, max_tokens
        self.num_tokens = len(claim.prefix.tokens)
        self.is_cancelled = False

    def step(self) -> StepOutput:
        """Return the next token, or the end."""
        id_ = f"{self.claim.request.generation_id}/{self.claim.lease.run}"
        if self.is_cancelled or self.num_tokens >= self.max_tokens:
            reason = "cancelled" if self.is_cancelled else "length"
            finish = Finish(reason=reason, prompt_tokens=3, completion_tokens=self.num_tokens)
            return StepOutput(sequence_id=id_, finish=finish)
        self.num_tokens += 1
        text = f"{self.num_tokens}.{self.claim.lease.run % 1_000_000} "
        return StepOutput(sequence_id=id_, tokens=(self.num_tokens,), text=text)


class Words:
    """Stands in for what the publisher's thread waits with: what is said elsewhere is done at its next turn."""

    def __init__(self) -> None:
        self.said: deque[Callable[[], None]] = deque()

    def put(self, word: Callable[[], None]) -> None:
        self.said.append(word)

    def hear(self) -> None:
        while self.said:
            self.said.popleft()()


class Worker:
    """One process of one slot. Is the publisher's `Outside`, and pool and runtime for `claim_best`."""

    def __init__(self, history: History, slot: str, boot: int) -> None:
        self.history, self.world = history, history.world
        self.process = Process(f"{slot}/{boot}")
        self.config = SimpleNamespace(slot=slot, boot=str(boot), slots=PLACES)
        self.store = history.store()
        self.charges = Charges()
        self.not_understood: dict[str, None] = {}
        self.runtime, self.room_is_for = self, None  # of the pool
        self.running: dict[str, Sequence] = {}
        self.is_draining = False
        self.words = Words()
        self.publisher = history.publisher(self)
        self._leases = Leases(
            store=self.store,
            publisher=self.publisher,
            worker_status=self._status,
            model_status=lambda: None,
            on_fatal=self._fatal,
        )
        self._leases._stopped = Event(self.world)  # type: ignore[assignment]

    def _fatal(self, error: BaseException) -> None:
        raise AssertionError(error)

    def start(self) -> None:
        for run in (self._take_tickets, self._compute, self._publish, self._leases._run):
            self.world.spawn(self.process, run, after_s=self.world.random.uniform(0, 0.3))

    # --- pool and runtime, as `claim_best` sees them

    @property
    def models(self) -> frozenset[str]:
        return frozenset() if self.is_draining else frozenset({"demo"})

    @property
    def holds_last_attempt(self) -> bool:
        return any(sequence.claim.request.attempt >= MAX_ATTEMPTS for sequence in self.running.values())

    def _take_tickets(self) -> None:
        while True:
            self.world.sleep(0.25)
            if self.is_draining or len(self.running) >= PLACES:
                continue
            try:
                ticket = self.history.pop(names.generate_queue("demo"))
            except AWAY:
                continue
            claim = claiming.claim_best(self, "demo") if ticket else None
            if claim is not None:
                self._begin(claim)

    def _begin(self, claim: Claim) -> None:
        id_ = claim.request.generation_id
        self.history.runs.setdefault(id_, []).append(self)
        active = ActiveGeneration(claim, queue_ms=0, claimed_at=self.world.monotonic())
        if claim.is_cancelled:
            active.cancel()
        else:
            self.charges.begin(f"{id_}/{claim.lease.run}", claim, 3)
            self.running[id_] = Sequence(claim, claim.request.params.max_tokens)
        self.publisher.begin(active)

    # --- threads

    def _compute(self) -> None:
        while True:
            self.world.sleep(STEP_S * self.world.random.uniform(0.7, 1.3))
            if any(map(self.history.is_poison, self.running)):
                self.history.die(self)
                continue
            outputs = [sequence.step() for sequence in self.running.values()]
            for output in outputs:
                if output.finish is not None:
                    del self.running[output.sequence_id.partition("/")[0]]
            if outputs:
                self.publisher.on_step(outputs)

    def _publish(self) -> None:
        while True:
            self.words.hear()
            self.publisher._turned_at = self.world.monotonic()
            self.publisher._turn()
            self.world.sleep(self.world.random.uniform(0.02, 0.08))

    def drain(self) -> None:
        """What SIGTERM does: claim no more, hand back, leave when all is settled."""
        self.is_draining = True

        def leave() -> None:
            for id_, sequence in list(self.running.items()):
                self.hand_back(id_, sequence.claim.lease.run)
            deadline = self.world.now + 4
            while self.world.now < deadline and not (self.publisher.is_settled() and not self.words.said):
                self.world.sleep(0.05)
            self.history.die(self)

        self.world.spawn(self.process, leave)

    def hand_back(self, id_: str, run: int) -> None:
        self.running.pop(id_, None)
        self.publisher.hand_back(id_, run)

    def _status(self) -> WorkerStatus:
        return WorkerStatus(
            slot=self.config.slot, boot=self.config.boot, model="demo", state="ready", slots=PLACES,
            running=len(self.running), steps=0, rows_per_step=0.0,
        )  # fmt: skip

    # --- what the publisher asks of the rest

    def drop(self, generation_id: str, run: int) -> None:
        sequence = self.running.get(generation_id)
        if sequence is not None and sequence.claim.lease.run == run:
            del self.running[generation_id]

    def cancel(self, generation_id: str, run: int) -> None:
        sequence = self.running.get(generation_id)
        if sequence is not None and sequence.claim.lease.run == run:
            sequence.is_cancelled = True

    def ask_to_store(self, generation_id: str) -> None:
        self.world.spawn(self.process, lambda: self.history.try_send(names.RECORDS_QUEUE, generation_id))

    def ring(self, active: ActiveGeneration) -> None:
        self.world.spawn(self.process, lambda: self.history.try_send(names.generate_queue("demo"), "-"))


def make_publisher(history: History, worker: Worker) -> Publisher:
    """Return the product's publisher with its words, its store and its channel layer replaced by this world's."""
    publisher = Publisher.__new__(Publisher)
    channels = SimpleNamespace(form=json.dumps, send=history.show)
    vars(publisher).update(
        _store=worker.store, _channels=channels, _flush_s=0.06, _outside=worker, _active={}, _by_sequence={},
        _ended=(), _begun=deque(), _outputs=deque(), _handing_back={}, _words=worker.words, _retry_at=0.0,
        _next_at=0.0, _turned_at=worker.world.monotonic(), _is_stopping=False, _thread=None,
    )  # fmt: skip
    return publisher
