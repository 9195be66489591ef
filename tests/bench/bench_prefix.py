"""What sharing prefixes saves in conversations while others evict, and what it costs when nothing is ever shared.

The savings are counted with the fake runner, whose answers depend on every block, so they come out the same everywhere.
The cost is the processor time of the engine alone with sharing on and off, in turns, and set against the time of the
same requests with a small model.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from unittest import mock

import torch

from tests.bench.mixed import STEP_TOKENS, Collector, InstantRunner, mixed_requests, ours, play
from tests.bench.models import as_loaded, random_llama
from tests.bench.table import Row, median_and_range
from tests.unit.engine.harness import World
from workers.engine.block_manager import BlockManager
from workers.engine.engine import Engine
from workers.engine.interfaces import BLOCK_TOKENS
from workers.engine.sequence import Sequence
from workers.fakes import FakeRunner
from workers.model.runner import TorchRunner

SEEDS, TURNS, BLOCKS, ROWS = range(5), 5, 256, 8
TRAFFIC = (0.25, 0.5, 0.75, 1.0)  # what Charlie sends between two turns of one user, in caches
# The one that the goal is for: Charlie fills the cache several times over, and what is his is older than the others'.
# From a whole cache on, whoever evicts the least recently used has lost all that a user comes back for.
PRESSURE = 0.5
COST_ROUNDS, COST_BATCHES, COST_BLOCKS = 11, 4, 512


def rows() -> list[Row]:
    """Count and measure, and return the table's rows."""
    return [_savings_row(), *_cost_rows()]


# --- what it saves


def _savings_row() -> Row:
    shares = {traffic: [_share(seed, traffic) for seed in SEEDS] for traffic in TRAFFIC}
    found = [share for share, _ in shares[PRESSURE]]
    evicted = statistics.median(evicted for _, evicted in shares[PRESSURE])
    others = ", ".join(
        f"{statistics.median(share for share, _ in shares[traffic]):.0%} at {traffic:.0%}"
        for traffic in TRAFFIC
        if traffic != PRESSURE
    )
    return Row(
        what=f"turns 2 to {TURNS} of Alice and Bob, prefill tokens not computed again",
        against="their block-aligned shared tokens",
        ratio=f"{statistics.median(found):.1%} ({min(found):.1%}-{max(found):.1%})",
        goal="93 %",
        note=f"Charlie sends {PRESSURE:.0%} of the cache between two turns of one; {evicted:.0f} evictions "
        f"from {BLOCKS} blocks; {others}",
    )


def _share(seed: int, traffic: float) -> tuple[float, int]:
    """Return the part of the shared tokens that was found, and how many blocks were evicted."""
    rng = random.Random(seed)
    with mock.patch("workers.engine.engine.BlockManager", _Counting):
        world = World(
            runner=FakeRunner(step_ms=0, num_blocks=BLOCKS, max_rows=ROWS, context_tokens=2048), step_tokens=256
        )
    ids = itertools.count()
    histories: dict[str, list[int]] = {"alice": [], "bob": []}
    shared = found = 0

    def prompt(size: int) -> list[int]:
        return [rng.randrange(10_000, 1 << 20) for _ in range(size)]

    def charlie() -> None:
        sent = 0
        while sent < traffic / 2 * BLOCKS * BLOCK_TOKENS:
            size, answer = rng.randrange(50, 400), rng.randrange(8, 64)
            world.add(f"charlie-{next(ids)}", prompt(size), answer, user_id="charlie")
            sent += size + answer
            for _ in range(rng.randrange(8)):  # others come and go meanwhile
                world.engine.step()

    for _ in range(TURNS):
        asked = []
        for user in rng.sample(sorted(histories), 2):
            history = histories[user]
            shared += len(history) // BLOCK_TOKENS * BLOCK_TOKENS
            history += prompt(rng.randrange(8, 80))
            id_ = f"{user}-{next(ids)}"
            world.add(id_, history, rng.randrange(20, 100), user_id=user)
            asked.append((id_, history))
            charlie()
        while world.engine.step():
            pass
        for id_, history in asked:
            found += world.record.finish[id_].cached_tokens
            history += world.record.tokens[id_]
    blocks = world.engine._blocks
    assert isinstance(blocks, _Counting)
    return found / shared, blocks.num_evicted


class _Counting(BlockManager):
    """Counts the blocks that were taken from the cache."""

    num_evicted = 0

    def _take(self, seq: Sequence, count: int) -> None:
        self.num_evicted += max(0, count - len(self._free))
        super()._take(seq, count)


# --- what it costs


def _cost_rows() -> list[Row]:
    batches = [mixed_requests(seed) for seed in range(100, 100 + COST_BATCHES)]
    num_steps = 0
    ratios, extra_s = [], []
    for _ in range(COST_ROUNDS):
        (on_s, num_steps), (off_s, _) = _bookkeeping_s(BlockManager, batches), _bookkeeping_s(_Private, batches)
        ratios.append(on_s / off_s)
        extra_s.append((on_s - off_s) / COST_BATCHES)
    runner = TorchRunner(
        as_loaded(random_llama(layers=6, width=512)), max_rows=32, kv_bytes=1 << 30, cpu_threads=torch.get_num_threads()
    )
    whole_s = min(ours(runner, batches[0])[0] for _ in range(3))
    extra_us = statistics.median(extra_s) / num_steps * COST_BATCHES * 1e6
    return [
        Row(
            what="prefix sharing where nothing is shared, 32 mixed requests, Llama 6 x 512",
            against="a run of them with sharing off",
            ratio=f"{statistics.median(extra_s) / whole_s:+.2%} ({min(extra_s) / whole_s:+.2%} to "
            f"{max(extra_s) / whole_s:+.2%})",
            goal="<= +1 %",
            note=f"{extra_us:.1f} us a step, with evictions; the extra of the engine alone over {whole_s:.2f} s of a "
            "run with the model",
        ),
        Row(
            what="the same, the engine alone without a model",
            against="its processor time with sharing off (less is better)",
            ratio=median_and_range(ratios),
            goal="-",
            note=f"{COST_ROUNDS} rounds in turns",
        ),
    ]  # fmt: skip


class _Private(BlockManager):
    """Shares nothing, so it hashes nothing either."""

    def commit(self, seq: Sequence) -> None:
        seq.num_committed = seq.num_computed // self.block_tokens

    def _match(self, seq: Sequence) -> list[int]:
        return []


def _bookkeeping_s(manager: type[BlockManager], batches: list[list[tuple[list[int], int]]]) -> tuple[float, int]:
    """Return the processor time of all batches on one engine, and its steps. The cache is full after the first two."""
    collector = Collector()
    with mock.patch("workers.engine.engine.BlockManager", manager):
        engine = Engine(InstantRunner(COST_BLOCKS), listener=collector, step_tokens=STEP_TOKENS)
    began = time.process_time()
    for batch in batches:
        play(engine, collector, batch)
    spent = time.process_time() - began
    assert engine.stats().cached_tokens == 0, "something was shared"
    return spent, engine.steps
