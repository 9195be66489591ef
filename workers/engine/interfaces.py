"""The borders of the engine: what it asks of a model, what it asks of text, and what it tells the outside.

Knows no torch and no clock. `workers.model.runner` and `workers.fakes` implement ModelRunner;
`workers.text` implements TextStream; `workers.generation` listens to StepOutput.

What is made for every token is a named tuple: a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from chatproject.contract.errors import Failure
from chatproject.contract.frames import TokenLogprob
from chatproject.contract.messages import MAX_LOGIT_BIAS, MAX_STOPS, MAX_TOP_LOGPROBS, SamplingParams

BLOCK_TOKENS = 16  # tokens per KV block
_TOKEN_END = 2**31  # ids from here on are of no vocabulary


class Row(NamedTuple):
    """One sequence's part of a step: compute ``tokens`` at positions ``start``, ``start + 1``, ..."""

    sequence_id: str
    tokens: tuple[int, ...]  # one for a decode step, a chunk for prefill
    start: int  # position of tokens[0] = tokens whose keys and values are in the cache
    block_table: tuple[int, ...]  # physical blocks, covering at least start + len(tokens) positions
    sampling: SamplingParams | None  # None: a chunk of prefill that is not the last; no token is wanted
    # Of a row whose choice depends on the tokens so far: prompt and answer, at least ``start + len(tokens)`` of them.
    # The list is the sequence's own, the same at every step, and only grows; read it, don't keep what lies behind.
    history: Sequence[int] | None = None
    num_prompt: int = 0  # of ``history``: the answer begins there


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely the model found a token, and the tokens it found likeliest, best first. Natural logarithms."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class RowResult(NamedTuple):
    """What one row gave: a token when one was wanted, or the code it alone fails with."""

    token: int | None = None
    failure: Failure | None = None
    logprob: Logprob | None = None  # when ``sampling.logprobs`` asked for it


class ModelRunner(Protocol):
    """Computes one step for any mix of prefill chunks and decode rows. Called from the engine thread only.

    May have a bool attribute ``runs_ahead``: true when it begins the next decode of a row by itself, which it can where
    ``block_table`` reaches a position further than it must.
    """

    num_blocks: int  # KV blocks there are; ids 0 .. num_blocks - 1
    context_tokens: int  # longest sequence (prompt + answer)
    max_rows: int  # rows of one step at most
    eos_tokens: frozenset[int]

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        """Return one result per row, in order. The sampled token's position is ``start + len(tokens)``.

        The choice depends on (logits, sampling, seed, position) alone, so that it is the same alone, batched and
        resumed. A bad row fails alone. Raises OutOfMemory when a smaller step may do, and anything else only when no
        row can be helped (the engine then looks for the culprit). Nothing is changed by computing a row again.
        """
        ...


class TextStream(Protocol):
    """Turns the tokens of one sequence into text, a piece at a time. Owned by the engine thread.

    May have a bool attribute ``is_stopped``: true when the ``prefix`` it has seen had completed a stop string already.
    May have a method ``bytes_of(token) -> bytes``: the text of one token by itself, for logprobs.
    """

    def push(self, token: int) -> Piece:
        """Take the next token and return the text that is now certain."""
        ...

    def flush(self) -> str:
        """Return the rest at the end of the answer (an incomplete character becomes U+FFFD)."""
        ...


class Piece(NamedTuple):
    """Text that is certain: whole characters that cannot become part of a stop string any more."""

    text: str
    is_stopped: bool = False  # a stop string is complete; ``text`` ends before it


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """What the engine needs to run one sequence."""

    sequence_id: str
    prompt: tuple[int, ...]  # prompt tokens, at least one
    prefix: tuple[int, ...] = ()  # answer tokens of earlier runs; they are prefilled, and count towards max_tokens
    sampling: SamplingParams
    text: TextStream  # has already seen ``prefix``
    priority: int = 3  # of the lane; 0 first
    user_id: str = ""  # scope of fairness and of prefix sharing
    weight: float = 1.0
    arrived_ms: int = 0  # for first-come order within a lane

    def problem(self, room_tokens: int) -> str:
        """Say in one sentence why this can never run where ``room_tokens`` is the longest sequence; else nothing."""
        try:
            return self._length_problem(room_tokens) or self._range_problem()
        except (TypeError, ValueError) as error:
            return f"The request is malformed: {error}."

    def _length_problem(self, room_tokens: int) -> str:
        if not self.prompt:
            return "The message has no tokens. Write something."
        if len(self.prompt) + 1 > room_tokens:
            return f"The message takes {len(self.prompt)} tokens; the model has room for {room_tokens - 1}. Shorten it."
        return ""

    def _range_problem(self) -> str:
        sampling = self.sampling
        facts = {
            "The message contains a token id that no vocabulary has.": all(
                isinstance(token, int) and 0 <= token < _TOKEN_END for token in (*self.prompt, *self.prefix)
            ),
            "temperature must be a number from 0.": 0 <= sampling.temperature < math.inf,
            "top_p must be over 0 and at most 1.": 0 < sampling.top_p <= 1,
            "top_k must be 0 (all) or more.": sampling.top_k >= 0,
            "max_tokens must be at least 1.": sampling.max_tokens >= 1,
            "min_p must be from 0 to 1.": 0 <= sampling.min_p <= 1,
            "repetition_penalty must be a number over 0.": 0 < sampling.repetition_penalty < math.inf,
            "The penalties must be numbers.": (
                math.isfinite(sampling.presence_penalty) and math.isfinite(sampling.frequency_penalty)
            ),
            f"logit_bias may name at most {MAX_LOGIT_BIAS} tokens, each once, with a number.": (
                len(sampling.logit_bias) <= MAX_LOGIT_BIAS
                and len({token for token, _ in sampling.logit_bias}) == len(sampling.logit_bias)
                and all(
                    isinstance(token, int) and 0 <= token < _TOKEN_END and math.isfinite(bias)
                    for token, bias in sampling.logit_bias
                )
            ),
            f"logprobs must be from 0 to {MAX_TOP_LOGPROBS}.": (
                sampling.logprobs is None or 0 <= sampling.logprobs <= MAX_TOP_LOGPROBS
            ),
            f"There may be at most {MAX_STOPS} stop strings.": len(sampling.stop) <= MAX_STOPS,
            "The request names no user and lane that can be scheduled.": (
                isinstance(self.user_id, str) and isinstance(self.priority, int) and math.isfinite(self.weight)
            ),
        }
        return next((sentence for sentence, is_so in facts.items() if not is_so), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a sequence ended in the engine; exactly one per sequence that was not dropped."""

    reason: Literal["stop", "length", "cancelled", "failed"]
    failure: Failure | None = None
    message: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0  # of this answer, ``prefix`` included
    cached_tokens: int = 0
    engine_s: float = 0.0  # its share of the steps it was in, by tokens, this run only
    prefill_s: float = 0.0  # wall time in the engine until the first token of this run
    decode_s: float = 0.0  # wall time from then to the end
    decode_tokens: int = 0  # of this run, after its first
    mean_rows: float = 0.0  # of the decode steps in that time; 0: there was none
    kv_blocks: int = 0  # held at the end, those shared with others too


class StepOutput(NamedTuple):
    """What one step gave one sequence. The pieces of ``text``, joined, are the answer."""

    sequence_id: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each of ``tokens``, when the request asked for them


class Listener(Protocol):
    """Hears the outputs of every step. Called in the engine thread; must return at once and never raise."""

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        """Take the outputs of one step, in any order, at most one per sequence."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters since the engine's start, for metrics and liveness. Idle + load + busy = wall."""

    steps: int = 0
    decode_steps: int = 0
    decode_rows: int = 0  # rows that decoded, summed over decode steps
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0  # timed by itself, up to now
    dropped_s: float = 0.0  # the part of busy_s that went to sequences without a Finish
    num_blocks: int = 0
    preemptions: int = 0
