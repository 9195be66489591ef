"""What one worker process is made of, and in which order it starts and stops.

Celery's main thread claims and gives requests here; the engine's thread computes; the publisher's thread writes and
shows; the leases' thread renews; the control thread hears. They meet in queues only.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from kombu.exceptions import OperationalError

from chatproject.contract.errors import Failure
from chatproject.contract.messages import Control, ModelStatus, WorkerStatus
from chatproject.contract.names import PRIORITY
from workers.cancellation import ControlListener
from workers.charges import Charges
from workers.config import Config
from workers.engine.interfaces import EngineStats, SequenceRequest, StepOutput
from workers.engine.loop import EngineLoop
from workers.errors import ModelLoadError, RequestRejected
from workers.generation import ActiveGeneration
from workers.leases import Leases
from workers.publisher import Publisher
from workers.serving import Serving, load
from workers.store import AWAY, Claim, Store

log = logging.getLogger(__name__)
EXIT_FATAL_ENGINE: Final = 70
EXIT_NO_MODEL: Final = 78  # configuration: a supervisor need not hurry to start it again
RESERVE_TOKENS: Final = 256  # kept free for the answer when history is cut
PACE_WEIGHT: Final = 0.1  # of the newest value in a moving average

# (generation id, run, outcome): the place is free; called in any thread.
Ended = Callable[[str, int, str], None]


class Runtime:
    """Owns the engine and its helpers. `begin`, `drop`, `cancel` and `hand_back` may be called from any thread."""

    def __init__(self, config: Config, *, send_task: Callable[..., object]) -> None:
        self.config = config
        self.store = Store(config.redis_url)
        self.charges = Charges()
        self.ended: Ended = lambda generation_id, run, outcome: None
        self._send_task = send_task
        self._senders = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tickets")
        self._publisher = Publisher(redis_url=config.redis_url, flush_ms=config.flush_ms, outside=self)
        self._leases = Leases(
            store=Store(config.redis_url), publisher=self._publisher, worker_status=self.worker_status,
            model_status=self.model_status, on_fatal=self._fatal,
        )  # fmt: skip
        self._control = ControlListener(redis_url=config.redis_url, slot=config.slot, heard=self._hear)
        self._serving: Serving | None = None
        self._loop: EngineLoop | None = None
        self.not_understood: dict[str, None] = {}  # ids that `claiming` leaves to workers of another version
        self._claimed_at: dict[str, float] = {}  # by sequence id, until the engine is done
        self._seconds_per_generation = 0.0
        self._started_at = time.monotonic()
        self._load_s = 0.0
        self._is_draining = False

    # --- life

    def start(self) -> None:
        """Start the threads and load the model beside them; `models` is empty until it is there."""
        self._started_at = time.monotonic()
        self._publisher.start()
        self._leases.start()
        self._control.start()
        threading.Thread(target=self._load, name="loader", daemon=True).start()

    def stop(self) -> None:
        """Stop in order: no new words, the engine, then what is to be written, then the leases that guarded it."""
        self._is_draining = True
        self._control.stop()
        if self._loop is not None:
            self._loop.stop(timeout_s=5)
        self._publisher.stop()
        self._leases.stop()
        with contextlib.suppress(*AWAY):
            self.charges.flush(self.store)
        self._senders.shutdown(wait=True)

    def drain(self) -> None:
        """Say that this worker claims no more."""
        self._is_draining = True

    @property
    def is_settled(self) -> bool:
        """Whether all that was claimed is stored or handed back."""
        return self._publisher.is_settled()

    @property
    def models(self) -> frozenset[str]:
        """The slugs whose tickets this worker can serve now."""
        return frozenset({self.config.slug}) if self._loop is not None and not self._is_draining else frozenset()

    # --- generations

    def begin(self, claim: Claim) -> None:
        """Run a claimed generation; `ended` is called once unless it is dropped."""
        now = time.monotonic()
        request = claim.request
        queue_ms = max(0, claim.lease.run - request.accepted_ms)
        active = ActiveGeneration(claim, queue_ms=queue_ms, claimed_at=now)
        sequence_id = active.sequence_id
        outcome = "failed"
        try:
            if claim.is_cancelled:
                active.cancel()
                outcome = "cancelled"
            else:
                submission = self._sequence(active, sequence_id)
        except RequestRejected as error:
            active.fail(Failure.REJECTED, str(error))
        except Exception:
            log.exception("generation %s", active.id)
            active.fail(Failure.ENGINE_ERROR)
        self._publisher.begin(active)
        if active.end is not None:
            self.charges.give_back(claim)
            self.ended(active.id, active.run, outcome)
            return
        self.charges.begin(sequence_id, claim, len(submission.prompt))
        self._claimed_at[sequence_id] = now
        assert self._loop is not None
        self._loop.submit(submission)

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        """Take the outputs of one engine step. Called in the engine thread."""
        self._publisher.on_step(outputs)
        for output in outputs:
            self.charges.took(output.sequence_id, len(output.tokens))
            if output.finish is not None:
                self.charges.end(output.sequence_id, is_complete=output.finish.reason in ("stop", "length"))
                generation_id, _, run = output.sequence_id.rpartition("/")
                self._learn_pace(output.sequence_id)
                self.ended(generation_id, int(run), output.finish.reason)

    def cancel(self, generation_id: str, run: int) -> None:
        """End a sequence within a step; what it wrote is kept."""
        if self._loop is not None:
            self._loop.cancel(f"{generation_id}/{run}")

    def drop(self, generation_id: str, run: int) -> None:
        """Forget a sequence, and free its place."""
        if self._loop is not None:
            self._loop.drop(f"{generation_id}/{run}")
        self._claimed_at.pop(f"{generation_id}/{run}", None)
        self.charges.end(f"{generation_id}/{run}")
        self.ended(generation_id, run, "dropped")

    def hand_back(self, generation_id: str, run: int) -> None:
        """Drop a sequence and give its generation back to the queue, as far as it came."""
        if self._loop is not None:
            self._loop.drop(f"{generation_id}/{run}")
        self._claimed_at.pop(f"{generation_id}/{run}", None)
        self.charges.end(f"{generation_id}/{run}")
        self._publisher.hand_back(generation_id, run)

    # --- tickets

    def ask_to_store(self, generation_id: str) -> None:
        """Send the records task; it is asked again while nothing is stored."""
        self._senders.submit(self._send, "store", generation_id)

    def ring(self, active: ActiveGeneration) -> None:
        """Send a ticket for a generation that was handed back."""
        self._senders.submit(self._send, "ring", active.claim.request.lane)

    def _send(self, what: str, detail: str) -> None:
        try:
            self._send_task(what, detail)
        except (*AWAY, OperationalError) as error:
            log.warning("%s is asked again: %r", what, error)
        except Exception:
            log.exception("%s", what)

    # --- what others are told

    def worker_status(self) -> WorkerStatus:
        """Return what this slot holds now."""
        stats = self._stats()
        ready = "ready" if self._loop is not None and self._loop.is_alive else "loading"
        return WorkerStatus(
            slot=self.config.slot, boot=self.config.boot, model=self.config.slug,
            state="draining" if self._is_draining else ready,  # type: ignore[arg-type]
            slots=self.config.slots, running=len(self._claimed_at), steps=stats.steps,
            rows_per_step=round(stats.decode_rows / stats.decode_steps, 3) if stats.decode_steps else 0.0,
            decode_steps=stats.decode_steps, tokens=stats.completion_tokens, prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens, waiting=stats.waiting, preemptions=stats.preemptions,
            kv_blocks=stats.num_blocks,
            kv_used=round(1 - stats.free_blocks / stats.num_blocks, 4) if stats.num_blocks else 0.0,
            up_s=round(time.monotonic() - self._started_at, 3), load_s=round(self._load_s, 3),
            busy_s=round(stats.busy_s, 3), idle_s=round(stats.idle_s, 3),
        )  # fmt: skip

    def model_status(self) -> ModelStatus | None:
        """Return what this worker knows of its model; None before it is loaded."""
        if self._serving is None:
            return None
        stats, serving = self._stats(), self._serving
        return ModelStatus(
            model=self.config.slug, context_tokens=serving.runner.context_tokens,
            vocabulary_sha256=serving.text.vocabulary_sha256, turn_tokens=serving.text.turn_tokens,
            slots=self.config.slots,
            seconds_per_token=round(stats.busy_s / stats.completion_tokens, 6) if stats.completion_tokens else 0.0,
            state="ready", seconds_per_generation=round(self._seconds_per_generation, 3),
        )  # fmt: skip

    def stats(self) -> EngineStats:
        """Return the engine's counters."""
        return self._stats()

    # --- inside

    def _load(self) -> None:
        began = time.monotonic()
        try:
            serving = load(self.config)
        except ModelLoadError as error:
            log.critical("The model cannot be loaded. %s", error)
            os._exit(EXIT_NO_MODEL)
        except BaseException:
            log.critical("The model cannot be loaded.", exc_info=True)
            os._exit(EXIT_NO_MODEL)
        self._load_s = time.monotonic() - self._started_at
        loop = EngineLoop(serving.runner, listener=self, on_fatal=self._fatal, step_tokens=self.config.step_tokens)
        loop.start()
        _collect_rarely()
        self._serving, self._loop = serving, loop
        log.info("model %s is ready after %.1f s", self.config.slug, time.monotonic() - began)

    def _fatal(self, error: BaseException) -> None:
        """Half an engine is worse than a new process; the leases lapse and others go on from the logs."""
        import faulthandler

        log.critical("the engine cannot go on: %r", error)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_FATAL_ENGINE)

    def _sequence(self, active: ActiveGeneration, sequence_id: str) -> SequenceRequest:
        assert self._serving is not None, "claimed before the model was loaded"
        request, text, runner = active.claim.request, self._serving.text, self._serving.runner
        reserve = min(request.params.max_tokens, RESERVE_TOKENS, runner.context_tokens // 4)
        prompt = text.encode_chat(request.turns, runner.context_tokens, reserve)
        active.dropped_turns = prompt.dropped_turns
        prefix = active.claim.prefix.tokens
        return SequenceRequest(
            sequence_id=sequence_id, prompt=prompt.tokens, prefix=prefix, sampling=request.params,
            text=text.text_stream(request.params.stop, prefix), priority=PRIORITY[request.lane],
            user_id=request.user_id, weight=request.weight, arrived_ms=request.accepted_ms,
        )  # fmt: skip

    def _hear(self, word: Control) -> None:
        if word.kind == "watch":
            self._publisher.watch(word.generation_id, word.channel)
        elif word.kind == "cancel" and self._loop is not None:
            for generation_id, lease in self._publisher.leases():
                if generation_id == word.generation_id:
                    self.cancel(generation_id, lease.run)
        elif word.kind == "drain":
            self.drain()

    def _stats(self) -> EngineStats:
        return self._loop.stats() if self._loop is not None else EngineStats()

    def _learn_pace(self, sequence_id: str) -> None:
        claimed_at = self._claimed_at.pop(sequence_id, None)
        if claimed_at is not None:
            took, known = time.monotonic() - claimed_at, self._seconds_per_generation
            self._seconds_per_generation = took if not known else known + PACE_WEIGHT * (took - known)


def _collect_rarely() -> None:
    """Look for cycles seldom: hundreds of logs kept in memory have none, and each full look stopped all streams."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
