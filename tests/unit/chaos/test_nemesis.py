"""Which faults a run draws."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos import nemesis
from tests.chaos.faults import FAULTS, NEEDS_POSTGRESQL
from tests.chaos.history import History


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_half_of_the_faults_are_kills_and_every_kind_comes(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setattr("tests.chaos.disk.is_possible", lambda: True)
    drawn = Counter(nemesis.choose_faults(7, 100, (), database))
    assert sum(drawn[kind] for kind in nemesis.KILLS) == 50
    assert drawn["kill_worker"] >= 25
    lacking = NEEDS_POSTGRESQL if database == "sqlite" else frozenset()
    assert set(drawn) == set(FAULTS) - lacking


def test_a_seed_draws_the_same_again_and_only_what_was_asked_for() -> None:
    assert nemesis.choose_faults(7, 30, (), "sqlite") == nemesis.choose_faults(7, 30, (), "sqlite")
    assert nemesis.choose_faults(7, 30, (), "sqlite") != nemesis.choose_faults(8, 30, (), "sqlite")
    drawn = Counter(nemesis.choose_faults(7, 5, ("kill_web", "stop_redis"), "sqlite"))
    assert set(drawn) == {"kill_web", "stop_redis"}
    assert sum(drawn.values()) == 5


async def test_after_a_long_fault_the_next_ones_do_not_come_all_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def long(*_: object) -> dict[str, object]:
        await asyncio.sleep(0.6)
        return {}

    async def short(*_: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(nemesis, "FAULTS", {"long": long, "short": short})
    kinds = ["long", "short", "short", "short"]
    history = History(tmp_path / "history.jsonl")
    done = await nemesis.run(SimpleNamespace(), history, seed=1, kinds=kinds, first_s=0.0, over_s=0.8)  # type: ignore[arg-type]
    history.close()
    assert [each.kind for each in done] == kinds
    assert all(later.began - earlier.ended >= 0.05 for earlier, later in itertools.pairwise(done))
