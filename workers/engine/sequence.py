"""One sequence as the engine schedules it: its tokens, its blocks, its place in line.

Knows no text, no scheduler and no clock. The engine thread owns every Sequence.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from chatproject.contract.messages import SamplingParams


class State(enum.Enum):
    """Where a sequence is; ENDED is for good."""

    WAITING = "waiting"  # holds no block; a preempted sequence is here again, with its tokens
    RUNNING = "running"  # holds blocks for every token it has
    ENDED = "ended"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Prompt and answer of one request. ``tokens`` only grows; what is computed of it may be forgotten and redone."""

    sequence_id: str
    tokens: list[int]  # prompt, then answer
    num_prompt: int
    sampling: SamplingParams
    user_id: str
    priority: int  # 0 first
    weight: float
    order: tuple[int, int]  # arrival, unique: the older the smaller; kept over preemptions
    is_penalised: bool = False  # its choices depend on its tokens so far
    state: State = State.WAITING
    num_computed: int = 0  # leading tokens whose keys and values are in ``blocks``
    blocks: list[int] = field(default_factory=list)  # physical block of tokens 0-15, 16-31, ...
    table: tuple[int, ...] = ()  # ``blocks``, frozen for the runner; rebuilt only when they change
    digests: list[bytes] = field(default_factory=list)  # of the full blocks hashed so far, chained
    num_committed: int = 0  # leading blocks that were offered to the prefix cache
    num_cached: int = 0  # tokens found in the prefix cache when it first started
    has_started: bool = False  # has run before; its prompt is charged once
    is_guaranteed: bool = False  # runs by its lane's minimum share; a higher lane does not push it out

    @property
    def num_pending(self) -> int:
        """Return how many tokens must be computed before the next one can be sampled; 1 means it decodes."""
        return len(self.tokens) - self.num_computed

    @property
    def num_answer(self) -> int:
        """Return how many tokens the answer has, those of earlier runs included."""
        return len(self.tokens) - self.num_prompt

    @property
    def rank(self) -> tuple[int, tuple[int, int]]:
        """Return the place in line: lane first, then age. The greatest is preempted first."""
        return (self.priority, self.order)
