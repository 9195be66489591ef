"""Which faults a run draws."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos import nemesis
from tests.chaos.faults import FAULTS, NEEDS_POSTGRESQL


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
