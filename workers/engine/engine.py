"""Run sequences step by step: plan, compute, take the tokens, tell the listener.

Knows the runner and the text streams by their interfaces. Knows no thread, and no time but the clock it is given.
No request can make it raise or hurt another: whatever fails for one sequence ends that sequence with a code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from chatproject.contract.errors import FAILURE_TEXT, Failure
from chatproject.contract.frames import TokenLogprob
from workers.engine.block_manager import BlockManager
from workers.engine.interfaces import (
    BLOCK_TOKENS,
    EngineStats,
    Finish,
    Listener,
    Logprob,
    ModelRunner,
    Row,
    RowResult,
    SequenceRequest,
    StepOutput,
    TextStream,
)
from workers.engine.scheduler import Part, Scheduler
from workers.engine.sequence import Sequence as EngineSequence
from workers.engine.step_size import StepSize
from workers.errors import FatalEngineError, OutOfMemory, RequestRejected

log = logging.getLogger(__name__)

Reason = Literal["stop", "length", "cancelled", "failed"]
_FAILED = RowResult(failure=Failure.ENGINE_ERROR)


@dataclass(slots=True, eq=False)
class _Answer:
    """What the engine keeps of a sequence beside its scheduling."""

    seq: EngineSequence
    text: TextStream
    end: int  # tokens of prompt and answer at which it is complete
    added_s: float
    first_token_s: float | None = None
    at_first_token: tuple[int, int, int] = (0, 0, 0)  # decode steps, their rows, tokens before it
    engine_s: float = 0.0


class Engine:
    """One batch that requests join and leave at any step. Synchronous; call everything from one thread."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        listener: Listener,
        step_tokens: int = 256,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._runner = runner
        self._listener = listener
        self._clock = clock
        self._blocks = BlockManager(runner.num_blocks, BLOCK_TOKENS)
        self._scheduler = Scheduler(
            self._blocks,
            max_rows=runner.max_rows,
            step_tokens=step_tokens,
            runs_ahead=getattr(runner, "runs_ahead", False),
        )
        self._size = StepSize(max_rows=runner.max_rows, step_tokens=step_tokens, least_tokens=BLOCK_TOKENS)
        self._answers: dict[str, _Answer] = {}
        self._outputs: list[StepOutput] = []  # not told yet
        self._num_added = 0
        self._steps = self._decode_steps = self._decode_rows = 0
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0
        self._busy_s = self._idle_s = self._dropped_s = 0.0
        self._resting_since_s: float | None = None
        self._mark_s = clock()  # all time before it is counted, as busy or idle

    @property
    def steps(self) -> int:
        """Return how many steps were computed; grows while there is work."""
        return self._steps

    def add(self, request: SequenceRequest) -> None:
        """Take a request; it joins the batch at the next step, or ends there as rejected.

        Raises RequestRejected when a sequence of the same id lives: that one's events must stay its own.
        """
        if request.sequence_id in self._answers:
            raise RequestRejected(f"Sequence {request.sequence_id} is already here; wait for its end, or drop it.")
        room = min(self._runner.context_tokens, self._runner.num_blocks * BLOCK_TOKENS)
        problem = request.problem(room)
        if problem:
            finish = Finish(reason="failed", failure=Failure.REJECTED, message=problem)
            self._outputs.append(StepOutput(sequence_id=request.sequence_id, finish=finish))
            return
        self._num_added += 1
        seq = EngineSequence(
            sequence_id=request.sequence_id,
            tokens=[*request.prompt, *request.prefix],
            num_prompt=len(request.prompt),
            sampling=request.sampling,
            is_penalised=request.sampling.is_penalised,
            user_id=request.user_id,
            priority=request.priority,
            weight=max(request.weight, 1e-3),
            order=(request.arrived_ms, self._num_added),
        )
        answer = _Answer(
            seq=seq,
            text=request.text,
            end=min(len(request.prompt) + request.sampling.max_tokens, room),
            added_s=self._clock(),
        )
        self._answers[request.sequence_id] = answer
        self._scheduler.add(seq)
        # An earlier run may have died between its last token and its end.
        if getattr(request.text, "is_stopped", False):
            self._finish(answer, "stop", is_mute=True, now_s=answer.added_s)
        elif len(seq.tokens) >= answer.end:
            self._finish(answer, "length", now_s=answer.added_s)

    def cancel(self, sequence_id: str) -> None:
        """End a sequence now, in whatever state; its last text and its end are told at the next step's start."""
        answer = self._answers.get(sequence_id)
        if answer is not None:
            self._finish(answer, "cancelled", now_s=self._clock())

    def drop(self, sequence_id: str) -> None:
        """Forget a sequence without a word: someone else serves it now."""
        answer = self._answers.pop(sequence_id, None)
        if answer is not None:
            self._dropped_s += answer.engine_s
            self._scheduler.remove(answer.seq)
        if self._outputs:
            self._outputs = [output for output in self._outputs if output.sequence_id != sequence_id]

    def step(self) -> bool:
        """Compute one step and tell what it gave. Return False when there was nothing to do.

        Raises FatalEngineError when the runner does; nothing else that a request can cause.
        """
        had_outputs = bool(self._outputs)
        self._tell()
        parts = self._scheduler.plan()
        if not parts:
            # To rest now would be for good; a new process is better.
            assert not self._scheduler.num_waiting, "sequences wait, and none can start"
            return had_outputs
        rows = [self._row(seq, num_tokens) for seq, num_tokens in parts]
        try:
            results = self._compute(rows)
        except OutOfMemory:
            results = None
        self._steps += 1
        now_s = self._clock()
        # From the last mark, so that what lies between two steps is paid for too.
        elapsed_s, self._mark_s = now_s - self._mark_s, now_s
        self._busy_s += elapsed_s
        per_token_s = elapsed_s / sum(num_tokens for _, num_tokens in parts)
        if results is None:
            self._shrink(parts, per_token_s, now_s)
        else:
            self._take(parts, results, per_token_s, now_s)
            if self._size.succeed():
                self._scheduler.limit(max_rows=self._size.rows, step_tokens=self._size.tokens)
        self._tell()
        return True

    def rest(self, wait: Callable[[], object]) -> None:
        """Call ``wait`` and count its time as idle. For the loop, when ``step`` had nothing to do."""
        begin_s = self._clock()
        self._busy_s += begin_s - self._mark_s
        self._resting_since_s = begin_s
        wait()
        self._mark_s = self._clock()
        self._resting_since_s = None
        self._idle_s += self._mark_s - begin_s

    def stats(self) -> EngineStats:
        """Return the counters. May be read from another thread; they then lie at most a step apart."""
        resting_since_s = self._resting_since_s
        return EngineStats(
            steps=self._steps,
            decode_steps=self._decode_steps,
            decode_rows=self._decode_rows,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            free_blocks=self._blocks.num_free,
            busy_s=self._busy_s,
            idle_s=self._idle_s + (self._clock() - resting_since_s if resting_since_s is not None else 0.0),
            dropped_s=self._dropped_s,
            num_blocks=self._runner.num_blocks,
            preemptions=self._scheduler.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError when blocks and sequences do not add up; for tests and after a chaos run."""
        self._blocks.check_integrity()
        assert len(self._answers) == self._scheduler.num_running + self._scheduler.num_waiting, "a sequence is lost"

    def _tell(self) -> None:
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._listener.on_step(outputs)

    def _row(self, seq: EngineSequence, num_tokens: int) -> Row:
        start, end = seq.num_computed, seq.num_computed + num_tokens
        is_last = end == len(seq.tokens)
        return Row(
            seq.sequence_id,
            (seq.tokens[start],) if num_tokens == 1 else tuple(seq.tokens[start:end]),
            start,
            seq.table,
            seq.sampling if is_last else None,
            seq.tokens if is_last and seq.is_penalised else None,
            seq.num_prompt,
        )

    def _compute(self, rows: list[Row]) -> Sequence[RowResult]:
        """Return a result for every row; after an exception each row runs alone, to find the one that caused it.

        Running a row again is harmless: the same keys and values are written to the same places.
        """
        try:
            results = self._runner.step(rows)
            if len(results) == len(rows):
                return results
            log.error("The runner gave %d results for %d rows.", len(results), len(rows))
        except (FatalEngineError, OutOfMemory):
            raise
        except Exception:
            log.exception("The runner failed on %s.", rows[0].sequence_id if len(rows) == 1 else f"{len(rows)} rows")
        if len(rows) == 1:
            return [_FAILED]
        return [self._compute([row])[0] for row in rows]

    def _shrink(self, parts: list[Part], per_token_s: float, now_s: float) -> None:
        """Go on with smaller steps after one that did not fit the memory; the sequences keep their tokens."""
        for seq, num_tokens in parts:
            self._answers[seq.sequence_id].engine_s += num_tokens * per_token_s
        if self._size.shrink(len(parts), sum(num_tokens for _, num_tokens in parts)):
            log.warning("Out of memory with %d rows; now at most %d.", len(parts), self._size.rows)
            self._scheduler.limit(max_rows=self._size.rows, step_tokens=self._size.tokens)
            return
        log.error("Out of memory with a single row.")
        for seq, _ in parts:
            self._finish(self._answers[seq.sequence_id], "failed", failure=Failure.ENGINE_ERROR, now_s=now_s)

    def _take(self, parts: list[Part], results: Sequence[RowResult], per_token_s: float, now_s: float) -> None:
        # Per row and step this is what an answer costs beside the model: about 10 us, so it calls little.
        num_decodes = num_tokens_taken = 0
        answers, advance, eos_tokens = self._answers, self._scheduler.advance, self._runner.eos_tokens
        for (seq, num_tokens), result in zip(parts, results, strict=True):
            answer = answers[seq.sequence_id]
            answer.engine_s += num_tokens * per_token_s
            token, failure, logprob = result
            if failure is None:
                advance(seq, num_tokens)
                if seq.num_computed < len(seq.tokens):
                    continue
            # A row of which the runner says nothing at all has failed too.
            if failure is not None or not isinstance(token, int):
                self._finish(answer, "failed", failure=failure or Failure.ENGINE_ERROR, now_s=now_s)
                continue
            if answer.first_token_s is not None:
                num_decodes += num_tokens == 1
            else:
                answer.first_token_s = now_s
                answer.at_first_token = (self._decode_steps, self._decode_rows, len(seq.tokens))
                self._prompt_tokens += seq.num_prompt
                self._cached_tokens += seq.num_cached
            if token in eos_tokens:
                self._finish(answer, "stop", now_s=now_s)
                continue
            seq.tokens.append(token)
            num_tokens_taken += 1
            self._say(answer, token, logprob, now_s)
        self._completion_tokens += num_tokens_taken
        if num_decodes:
            self._decode_steps += 1
            self._decode_rows += num_decodes

    def _say(self, answer: _Answer, token: int, logprob: Logprob | None, now_s: float) -> None:
        """Turn the newest token into text, and end the answer when this was its last."""
        seq = answer.seq
        try:
            piece = answer.text.push(token)
            told = () if logprob is None else (_told(logprob, answer.text),)
        except Exception:
            log.exception("The text of %s failed.", seq.sequence_id)
            self._finish(answer, "failed", tokens=(token,), failure=Failure.ENGINE_ERROR, is_mute=True, now_s=now_s)
            return
        if piece.is_stopped:
            self._finish(answer, "stop", tokens=(token,), text=piece.text, logprobs=told, is_mute=True, now_s=now_s)
        elif len(seq.tokens) >= answer.end:
            self._finish(answer, "length", tokens=(token,), text=piece.text, logprobs=told, now_s=now_s)
        else:
            self._outputs.append(StepOutput(seq.sequence_id, (token,), piece.text, None, told))

    def _finish(
        self,
        answer: _Answer,
        reason: Reason,
        *,
        now_s: float,
        tokens: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        failure: Failure | None = None,
        is_mute: bool = False,  # the text stream has nothing more to say
    ) -> None:
        seq = answer.seq
        if not is_mute:
            try:
                text += answer.text.flush()
            except Exception:
                log.exception("The text of %s failed at its end.", seq.sequence_id)
                reason, failure = "failed", failure or Failure.ENGINE_ERROR
        kv_blocks = len(seq.table)
        steps_before, rows_before, tokens_before = answer.at_first_token
        num_steps, num_rows = self._decode_steps - steps_before, self._decode_rows - rows_before
        self._scheduler.remove(seq, is_suspect=failure is not None)
        del self._answers[seq.sequence_id]
        first_s = answer.first_token_s
        finish = Finish(
            reason=reason,
            failure=failure,
            message=FAILURE_TEXT[failure] if failure is not None else "",
            prompt_tokens=seq.num_prompt,
            completion_tokens=seq.num_answer,
            cached_tokens=min(seq.num_cached, seq.num_prompt),
            engine_s=answer.engine_s,
            prefill_s=(now_s if first_s is None else first_s) - answer.added_s,
            decode_s=0.0 if first_s is None else now_s - first_s,
            decode_tokens=max(0, len(seq.tokens) - tokens_before - 1) if first_s is not None else 0,
            mean_rows=num_rows / num_steps if first_s is not None and num_steps else 0.0,
            kv_blocks=kv_blocks,
        )
        self._outputs.append(
            StepOutput(sequence_id=seq.sequence_id, tokens=tokens, text=text, finish=finish, logprobs=logprobs)
        )


def _told(logprob: Logprob, text: TextStream) -> TokenLogprob:
    """Return a logprob for those who know no vocabulary."""
    bytes_of = getattr(text, "bytes_of", _number)
    top = tuple((bytes_of(token), value) for token, value in logprob.top)
    return TokenLogprob(bytes_of(logprob.token), logprob.logprob, top)


def _number(token: int) -> bytes:
    return f"<{token}>".encode()
