"""Random histories of the durability protocol: the product's own code on virtual time, with everything that may fail.

`CHAT_HISTORIES=500 pytest tests/unit/protocol` plays more of them. A failure names its seed.
"""

from __future__ import annotations

import os

import pytest

from chatproject.generations.models import Generation
from tests.unit.protocol import defects, faults
from tests.unit.protocol.conftest import Play

NUM_HISTORIES = int(os.environ.get("CHAT_HISTORIES") or 8)
SEEDS_TO_SEE = 16

pytestmark = [pytest.mark.needs("redis"), pytest.mark.timeout(600)]


def test_nothing_is_lost_doubled_or_reordered_whatever_breaks(play: Play) -> None:
    for seed in range(NUM_HISTORIES):
        assert play(seed, faults.ALL).violations() == set(), f"seed {seed}"


def test_a_poison_is_set_aside_and_its_neighbours_are_answered(play: Play) -> None:
    history = play(1, [], poison=1)
    assert history.violations() == set()
    poison = Generation.objects.get(id=history.chats[0].id)
    assert (poison.status, poison.code) == ("failed", "quarantined")


@pytest.mark.parametrize("plant", defects.PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_defect_is_seen(play: Play, plant: defects.Plant) -> None:
    its_faults, wanted = defects.PLANTED[plant]
    for seed in range(SEEDS_TO_SEE):
        found = {violation.partition(":")[0] for violation in play(seed, its_faults, plant=plant).violations()}
        if found & wanted:
            return
    pytest.fail(f"{plant.__name__} stayed hidden; the last history showed {found or 'nothing'}")
