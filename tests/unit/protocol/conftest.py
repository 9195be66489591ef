"""Plays histories: one seed, some faults, perhaps a planted defect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from chatproject.accounts.models import DailyUse, Plan, Reservation, UsageRecord, User
from chatproject.generations.models import Generation
from tests.unit.protocol.history import Fault, History

Play = Callable[..., History]
Plant = Callable[[pytest.MonkeyPatch, list[History]], None]


@pytest.fixture
def play(fresh_redis_url: str, transactional_db: None) -> Iterator[Play]:
    """Return a function that plays one history."""
    plan, _ = Plan.objects.get_or_create(name="simulated")
    alice = User.objects.create(username="alice", plan=plan)

    def run(seed: int, faults: list[Fault], *, plant: Plant | None = None, poison: int = 0) -> History:
        for model in (Generation, UsageRecord, Reservation, DailyUse):
            model.objects.all().delete()
        with pytest.MonkeyPatch.context() as patch:
            now: list[History] = []
            if plant is not None:
                plant(patch, now)
            history = History(fresh_redis_url, seed, alice, patch, chats=8, poison=poison)
            now.append(history)
            history.run(faults)
        return history

    logging.disable(logging.WARNING)  # thousands of lines say that Redis is away, as it should be
    yield run
    logging.disable(logging.NOTSET)
