"""Workers on a virtual clock over a real Redis: the product's claims, charges and engines, with time made by steps."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import redis

from chatproject.contract import names, scripts
from chatproject.contract.fairness import INPUT_COST, OUTPUT_COST, About
from chatproject.contract.messages import GenerationRequest, SamplingParams, Turn
from chatproject.contract.names import LANES, PRIORITY, Lane
from workers.bootsteps import Doorman
from workers.charges import Charges
from workers.claiming import claim_best
from workers.engine.engine import Engine
from workers.engine.interfaces import SequenceRequest, StepOutput
from workers.fakes import FakeRunner, FakeTokenizer
from workers.pool import EnginePool
from workers.store import Claim, Store

STEP_S = 0.02
STEP_TOKENS = 64
FAR_MS = 10**14


class Worker:
    """A pool, a runtime and a consumer in one, as far as claims know them."""

    def __init__(self, fleet: Fleet, slot: str, num_places: int) -> None:
        self.fleet, self.num_places = fleet, num_places
        self.models = {"demo"}
        self.store, self.charges = Store(fleet.url), Charges()
        self.config = SimpleNamespace(slug="demo", slot=slot, boot="b")
        self.jobs: dict[str, Any] = {}
        self.room_is_for: str | None = None
        self.runtime, self.pool, self.is_draining = self, self, False
        self.expired: list[str] = []
        self.not_understood: dict[str, None] = {}
        runner = FakeRunner(
            step_ms=0, num_blocks=64 * num_places, max_rows=num_places, context_tokens=1024, sleep=lambda seconds: None
        )
        self.engine = Engine(runner, listener=self, step_tokens=STEP_TOKENS, clock=lambda: fleet.now_s)

    holds_last_attempt = EnginePool.holds_last_attempt

    @property
    def num_free(self) -> int:
        return self.num_places - len(self.jobs)

    def ask_to_store(self, generation_id: str) -> None:
        self.expired.append(generation_id)

    def hand_back(self, job: Any, why: str) -> None:
        id_ = job.claim.request.generation_id
        del self.jobs[id_]
        self.engine.drop(id_)
        self.charges.end(id_)
        assert self.store.hand_back(job.claim) == "waiting"

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            self.fleet.take(output)
            self.charges.took(output.sequence_id, len(output.tokens))
            if output.finish is not None:
                self.charges.end(output.sequence_id, is_complete=True)
                del self.jobs[output.sequence_id]

    def turn(self) -> None:
        """What a worker does within a step's time."""
        if self.fleet.is_fair:
            Doorman._make_room(self, self)  # type: ignore[arg-type]
        while self.num_free > 0:
            claim = self._claim()
            if claim is None:
                break
            self._begin(claim)
        self.engine.step()

    def _claim(self) -> Claim | None:
        if self.fleet.is_fair:
            guest, self.room_is_for = self.room_is_for, None
            return claim_best(self, "demo", takes_last=not self.holds_last_attempt, guest=guest)
        heads = [(row[0][1], row[0][0], lane) for lane in LANES if (row := self.fleet.head(lane))]
        if not heads:
            return None
        _, id_, lane = min(heads)
        return self.store.claim(model="demo", lane=lane, generation_id=id_, slot=self.config.slot, boot="b")

    def _begin(self, claim: Claim) -> None:
        request = claim.request
        id_ = request.generation_id
        self.jobs[id_] = SimpleNamespace(claim=claim, started=self.fleet.now_s)
        prompt = self.fleet.prompts[id_]
        self.charges.begin(id_, claim, len(prompt))
        prefix = tuple(self.fleet.tokens.get(id_, ()))
        self.engine.add(
            SequenceRequest(
                sequence_id=id_, prompt=prompt, prefix=prefix, sampling=request.params,
                text=FakeTokenizer().text_stream((), prefix), priority=PRIORITY[request.lane],
                user_id=request.user_id, weight=request.weight, arrived_ms=request.accepted_ms,
            )
        )  # fmt: skip


class Fleet:
    """Some workers of one model, and those who ask them. ``is_fair=False``: first come, first served, in all lanes."""

    def __init__(self, url: str, *, num_workers: int = 2, num_places: int = 4, is_fair: bool = True) -> None:
        self.url, self.is_fair = url, is_fair
        self.server = redis.Redis.from_url(url, decode_responses=True)
        self.server.flushall()
        self._enqueue = self.server.register_script(scripts.ENQUEUE.source)
        self.now_s, self.num_steps = 0.0, 0
        self.requests: dict[str, GenerationRequest] = {}
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.asked_s: dict[str, float] = {}
        self.first_token_s: dict[str, float] = {}
        self.tokens: dict[str, list[int]] = {}
        self.workers = [Worker(self, f"w{index}", num_places) for index in range(num_workers)]

    def ask(self, asked: Sequence[tuple[str, Lane, int, int]]) -> list[str]:
        """Let users ask now: (user, lane, prompt tokens, answer tokens) each. Return the ids."""
        pipe = self.server.pipeline(transaction=False)
        ids = []
        for user, lane, num_prompt, max_tokens in asked:
            id_, number = str(uuid.uuid4()), len(self.requests)
            request = GenerationRequest(
                generation_id=id_, model="demo", lane=lane, user_id=user,
                turns=(Turn(role="user", text="abc " * num_prompt),), params=SamplingParams(max_tokens=max_tokens),
                accepted_ms=number, expires_ms=FAR_MS,
            )  # fmt: skip
            self.requests[id_], self.prompts[id_] = request, (10_000 + number, *range(20_000, 20_000 + num_prompt - 1))
            self.asked_s[id_] = self.now_s
            keys = [names.request_key(id_), names.wait_key("demo", lane), names.lease_key(id_), names.log_key(id_)]
            args = [id_, request.to_json(), number, 3_600_000, str(About.of(request))]
            self._enqueue(keys=keys, args=args, client=pipe)
            ids.append(id_)
        pipe.execute()
        return ids

    def step(self) -> None:
        """Let one step's time pass."""
        for worker in self.workers:
            worker.turn()
            if self.num_steps % 25 == 0:
                worker.charges.flush(worker.store)
        self.num_steps += 1
        self.now_s += STEP_S

    def take(self, output: StepOutput) -> None:
        if output.tokens:
            # The step that gave them ends with this step's time.
            self.first_token_s.setdefault(output.sequence_id, self.now_s + STEP_S)
            self.tokens.setdefault(output.sequence_id, []).extend(output.tokens)

    def head(self, lane: Lane) -> list[tuple[str, float]]:
        return self.server.zrange(names.wait_key("demo", lane), 0, 0, withscores=True)  # type: ignore[return-value]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))

    def cost_by_user(self) -> dict[str, float]:
        """Return the service each user has had, really."""
        cost: dict[str, float] = {}
        for id_, tokens in self.tokens.items():
            user = self.requests[id_].user_id
            cost[user] = cost.get(user, 0.0) + INPUT_COST * len(self.prompts[id_]) + OUTPUT_COST * len(tokens)
        return cost

    def waits_s(self, ids: Sequence[str]) -> list[float]:
        return [self.first_token_s[id_] - self.asked_s[id_] for id_ in ids]
