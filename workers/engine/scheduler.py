"""Decide which sequences run in the next step, and how many tokens of each.

Knows sequences, blocks and fairness. Knows nothing of torch, text, Celery or Redis, and reads no clock.

Why everything ends: a sequence is taken in only if it fits the cache alone. Blocks are given as it grows; when they run
out, the newest of the lowest lane gives up its own, keeps its tokens and waits to compute them again. So the first in
rank among those that run is never stopped by lack of blocks, finishes, and leaves its place to the next.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from typing import Final

from workers.engine.block_manager import BlockManager
from workers.engine.fairness import MINIMUM_SHARES, FairQueue, LaneShares
from workers.engine.sequence import Sequence, State

# Blocks that stay free per running sequence when another is taken in. Of 1, 2, 4 and 8, two needed the fewest steps for
# 64 requests on a cache that holds a third of them, at 6 % of tokens computed twice (one: 16 %).
_GROWTH_BLOCKS: Final = 2

Part = tuple[Sequence, int]  # how many of its pending tokens a sequence computes in this step


class Scheduler:
    """Owns the waiting lanes and the running batch. Engine thread only."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_rows: int,
        step_tokens: int,
        minimum_shares: Mapping[int, float] = MINIMUM_SHARES,
        runs_ahead: bool = False,
    ) -> None:
        """With ``runs_ahead`` sequences get the block of their next token a step early, as far as blocks abound."""
        self._blocks = blocks
        self._max_rows = max_rows
        self._step_tokens = step_tokens
        self._runs_ahead = runs_ahead
        self._shares = LaneShares(minimum_shares)
        self._lanes: dict[int, FairQueue] = {}
        self._running: list[Sequence] = []  # by rank
        self.num_waiting = 0
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Return how many sequences hold blocks."""
        return len(self._running)

    def add(self, seq: Sequence) -> None:
        """Put a new sequence in line. It must fit the cache alone."""
        self._lane(seq).push(seq)
        self.num_waiting += 1

    def remove(self, seq: Sequence, *, is_suspect: bool = False) -> None:
        """End ``seq`` in whatever state it is; the blocks of a suspect are not found by others any more."""
        if seq.state is State.WAITING:
            self._lane(seq).remove(seq)
            self.num_waiting -= 1
        elif seq.state is State.RUNNING:
            self._running.remove(seq)
            if is_suspect:
                self._blocks.forget(seq)
            self._blocks.release(seq)
        seq.state = State.ENDED

    def limit(self, *, max_rows: int, step_tokens: int) -> None:
        """Make the next steps at most this large; what runs beyond gives up its blocks and waits, the newest first."""
        self._max_rows, self._step_tokens = max_rows, step_tokens
        while len(self._running) > max_rows:
            self._preempt(self._running[-1])

    def plan(self) -> list[Part]:
        """Return the parts of the next step: every sequence that decodes, then as much prefill as the budget leaves."""
        block_tokens = self._blocks.block_tokens
        for seq in self._running.copy():
            if len(seq.tokens) > len(seq.blocks) * block_tokens and seq.state is State.RUNNING:
                self._extend(seq)
        while self.num_waiting and self._admit():
            pass
        if self._runs_ahead:
            for seq in self._running:
                self._blocks.extend_ahead(seq, _GROWTH_BLOCKS * len(self._running))
        parts: list[Part] = []
        prefills: list[Sequence] = []
        for seq in self._running:
            if len(seq.tokens) - seq.num_computed == 1:
                parts.append((seq, 1))
            else:
                prefills.append(seq)
        # A batch of decodes as large as the budget still lets prefill go on, a block at a time.
        budget = max(self._step_tokens - len(parts), self._blocks.block_tokens)
        for seq in prefills:
            if budget <= 0:
                break
            part = min(seq.num_pending, budget)
            parts.append((seq, part))
            budget -= part
        self._account(parts)
        return parts

    def advance(self, seq: Sequence, num_tokens: int) -> None:
        """Take note that the next ``num_tokens`` pending tokens of ``seq`` are computed."""
        seq.num_computed = computed = seq.num_computed + num_tokens
        if computed // self._blocks.block_tokens > seq.num_committed:
            self._blocks.commit(seq)
        if computed == len(seq.tokens):
            self._lanes[seq.priority].served_token(seq)

    def _lane(self, seq: Sequence) -> FairQueue:
        lane = self._lanes.get(seq.priority)
        if lane is None:
            lane = self._lanes[seq.priority] = FairQueue(self._blocks.num_cached)
        return lane

    def _extend(self, seq: Sequence) -> None:
        while not self._blocks.can_extend(seq):
            # It may be its own victim: then everyone else is before it.
            self._preempt(self._running[-1])
            if seq.state is not State.RUNNING:
                return
        self._blocks.extend(seq)

    def _preempt(self, seq: Sequence) -> None:
        self._running.remove(seq)
        self._blocks.release(seq)
        seq.state = State.WAITING
        seq.is_guaranteed = False
        self._lane(seq).push(seq)
        self.num_waiting += 1
        self.num_preemptions += 1

    def _admit(self) -> bool:
        """Start the sequence whose turn it is, if one can start now."""
        waiting = [priority for priority in sorted(self._lanes) if len(self._lanes[priority])]
        for priority in waiting[1:]:
            seq = self._lanes[priority].head()
            if seq and self._shares.credit(priority) >= len(seq.tokens) and self._fits(seq):
                seq.is_guaranteed = True
                self._start(seq)
                return True
        seq = self._lanes[waiting[0]].head()
        if seq is None or not self._has_budget(seq):
            return False
        if not self._fits(seq) and not self._make_way(seq):
            return False
        self._start(seq)
        return True

    def _has_budget(self, seq: Sequence) -> bool:
        """Say whether a step has tokens left for ``seq`` after the decodes and the prefill that comes before it."""
        before = sum(
            other.num_pending for other in self._running if other.num_pending == 1 or other.priority <= seq.priority
        )
        return before < max(self._step_tokens, len(self._running) + 1)

    def _fits(self, seq: Sequence) -> bool:
        # Running sequences keep blocks to grow into, or starting one would soon stop another.
        spare = _GROWTH_BLOCKS * len(self._running)
        return len(self._running) < self._max_rows and self._blocks.can_allocate(seq, spare)

    def _make_way(self, seq: Sequence) -> bool:
        """Preempt the newest of lower lanes until ``seq`` fits; none if even all of them would not do."""
        victims = [other for other in self._running if other.priority > seq.priority and not other.is_guaranteed]
        if not victims:
            return False
        staying = {block for other in self._running if other not in victims for block in other.blocks}
        num_staying = len(self._running) - len(victims)
        needed = self._blocks.num_needed(len(seq.tokens)) + _GROWTH_BLOCKS * num_staying
        if num_staying >= self._max_rows or needed > self._blocks.num_blocks - len(staying):
            return False
        while victims and not self._fits(seq):
            self._preempt(victims.pop())
        return self._fits(seq)

    def _start(self, seq: Sequence) -> None:
        self.num_waiting -= 1
        self._blocks.allocate(seq)
        self._lanes[seq.priority].start(seq)
        seq.state = State.RUNNING
        if not seq.has_started:
            seq.has_started = True
            seq.num_cached = seq.num_computed
        insort(self._running, seq, key=_rank)

    def _account(self, parts: list[Part]) -> None:
        if not self.num_waiting:
            self._shares.clear()
            return
        served: dict[int, int] = {}
        for seq, num_tokens in parts:
            served[seq.priority] = served.get(seq.priority, 0) + num_tokens
        self._shares.account([priority for priority, lane in self._lanes.items() if len(lane)], served)


def _rank(seq: Sequence) -> tuple[int, tuple[int, int]]:
    return seq.rank
