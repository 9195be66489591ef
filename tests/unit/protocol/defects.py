"""Planted defects: each takes one thought out of the protocol. A simulation that does not see them proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chatproject.accounts import quotas
from chatproject.contract.frames import Frame
from chatproject.generations import records, sweeper
from chatproject.generations.models import Generation
from chatproject.generations.streaming.cursor import Cursor, Verdict
from tests.unit.protocol import faults
from tests.unit.protocol.history import Fault, History
from workers.generation import ActiveGeneration
from workers.publisher import Publisher
from workers.store import Store

Plant = Callable[[pytest.MonkeyPatch, list[History]], None]


def no_sweep(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """Nobody brings back what no worker serves."""
    patch.setattr(sweeper.Sweeper, "_bring_back", lambda self, row: None)


def no_top_up(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """A lost ticket is lost."""
    patch.setattr(sweeper, "_ring_for_waiting", lambda models: None)


def show_before_log(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """Frames go out without waiting for Redis to have taken them."""

    def show(self: Publisher, due: Any) -> None:
        for active in due:
            for frame in active.shown():
                for channel in active.channels:
                    now[0].boxes.setdefault(channel, []).append(frame)

    patch.setattr(Publisher, "_show", show)
    order = Publisher._write

    def write_later(self: Publisher, writing: Any, messages: Any) -> bool:
        if now[0].random.random() < 0.3:
            order(self, writing, [])
        return False

    patch.setattr(Publisher, "_write", write_later)


def no_restore(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """A worker whose log is gone begins a new one, without what was there."""

    def restart(self: ActiveGeneration) -> None:
        self.entries, self.num_logged = [(f"{self.run}-0", {"k": "start"})], 0

    patch.setattr(ActiveGeneration, "restart_log", restart)


def forget_at_the_end(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """A worker forgets a generation as soon as its end is asked to be stored."""
    ask = Publisher._ask_to_store

    def ask_and_forget(self: Publisher, at: float) -> None:
        ask(self, at)
        for active in list(self._active.values()):
            if active.end is not None and active.num_logged == len(active.entries):
                self._forget(active)

    patch.setattr(Publisher, "_ask_to_store", ask_and_forget)


def no_gap_check(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """A reader shows whatever comes."""

    def offer(self: Cursor, frame: Frame) -> Verdict:
        self._pass(frame)
        return Verdict.SHOW

    patch.setattr(Cursor, "offer", offer)


def settle_outside_the_transaction(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """The row is terminal first, and charged a moment later."""
    settle = quotas.settle

    def later(**fields: Any) -> bool:
        def run() -> None:
            now[0].world.sleep(0.02)
            settle(**fields)

        process = now[0].records
        now[0].world.spawn(process, run, after_s=0.3)
        return True

    patch.setattr(records.quotas, "settle", later)


def count_a_death_at_every_return(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """Whoever cannot be queued, because Redis refuses it, has died once more each time."""
    bring_back = sweeper.Sweeper._bring_back

    def forget_and_bring_back(self: sweeper.Sweeper, row: Generation) -> None:
        row.run_at_death = None
        bring_back(self, row)

    patch.setattr(sweeper.Sweeper, "_bring_back", forget_and_bring_back)


def claim_before_others_renew(patch: pytest.MonkeyPatch, now: list[History]) -> None:
    """What a Redis that began again takes for waiting is claimed at once."""
    patch.setattr(Store, "is_settled", lambda self: True)


# Each with the faults that bring it to light (fewer faults, fewer histories) and what must be seen.
PLANTED: dict[Plant, tuple[list[Fault], set[str]]] = {
    no_sweep: ([faults.kill_worker, faults.redis_loses_all], {"lost"}),
    no_top_up: ([faults.lose_tickets], {"lost"}),
    show_before_log: ([faults.kill_worker], {"replaced without cause", "shown out of order"}),
    no_restore: ([faults.redis_loses_all], {"replaced without cause", "lost", "error"}),
    forget_at_the_end: ([faults.redis_loses_all, faults.lose_outcomes], {"replaced without cause"}),
    no_gap_check: ([faults.lose_tickets], {"shown out of order"}),
    count_a_death_at_every_return: ([faults.redis_refuses_writes, faults.kill_worker], {"failed though harmless"}),
    claim_before_others_renew: ([faults.redis_goes_back], {"replaced without cause"}),
    settle_outside_the_transaction: ([faults.kill_records], {"not charged once"}),
}
