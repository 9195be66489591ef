"""The harness must not be blind: its faults meet something, and what is broken has a name in the table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.chaos import checker
from tests.chaos.chats import Chat, Silence
from tests.chaos.nemesis import Done
from tests.chaos.options import read
from tests.chaos.planted import tickets
from tests.chaos.planted.sitecustomize import DEFECTS
from tests.chaos.scenarios import figures

EMPTY: dict[str, Any] = {"rows": [], "charged": [], "held": [], "said": [], "reserved": 0}


def channel(tmp_path: Path) -> tuple[Any, list[str]]:
    put: list[str] = []

    class Channel:
        def _put(self, queue: str, message: str) -> None:
            put.append(message)

    module = SimpleNamespace(Channel=Channel)
    tickets.unreliable(module, str(tmp_path / "proxy.sock"))  # type: ignore[arg-type]
    return Channel(), put


def test_tickets_vanish_and_come_again_where_they_are_sent(tmp_path: Path) -> None:
    sender, put = channel(tmp_path)
    order, count = tickets.order_file(tmp_path / "proxy.sock"), tickets.count_file(tmp_path / "proxy.sock")
    sender._put("generate.demo", "first")
    order.write_text("drop")
    sender._put("generate.demo", "lost")
    sender._put("w1.celery.pidbox", "control words are not tickets")
    order.write_text("repeat")
    sender._put("generate.demo", "second")
    assert put == ["first", "control words are not tickets", "second", "second", "first", "lost"]
    assert count.stat().st_size == 4


def test_a_run_whose_tickets_were_never_lost_proves_nothing() -> None:
    chat = Chat(number=1, client_id="c", user="u", text="", max_tokens=1, accepted=[{"generation": "g"}])
    done = Done(kind="drop_tickets", began=0, ended=2, hit={"dropped": 0})
    assert "dropped" in checker.check([chat], [done], EMPTY, []).void


def test_silence_and_an_early_end_break_an_invariant() -> None:
    chat = Chat(number=1, client_id="c", user="u", text="", max_tokens=1, accepted=[{"generation": "g"}])
    chat.problems.append("early: the end was shown, and then it was running")
    chat.silences.append(Silence(began=10, ended=30))
    broken = checker.check([chat], [], EMPTY, []).broken
    assert len(broken["silent"]) == len(broken["early"]) == 1


def test_silence_counts_unless_everybody_was_cut_off_for_most_of_it() -> None:
    chat = Chat(number=1, client_id="c", user="u", text="", max_tokens=1, accepted=[{"generation": "g"}])
    chat.silences.append(Silence(began=531, ended=551))

    def silent(*faults: tuple[str, float, float]) -> bool:
        done = [Done(kind=kind, began=began, ended=ended, hit={}) for kind, began, ended in faults]
        return bool(checker.check([chat], done, EMPTY, []).broken["silent"])

    assert not silent(("hold_links", 533.9, 540.3), ("stop_redis", 540.3, 548.2))
    assert silent(("hold_links", 533.9, 540.3))
    assert silent(("hold_links", 533.9, 540.3), ("hold_links", 533.9, 540.3))  # the same seconds count once
    assert silent(("kill_web", 531, 551))


def test_a_web_process_that_hangs_excuses_its_own_clients_alone() -> None:
    hung = Done(kind="stop_web", began=100, ended=122, hit={"url": "http://a:1"})

    def is_silent(url: str) -> bool:
        chat = Chat(number=1, client_id="c", user="u", text="", max_tokens=1, accepted=[{"generation": "g"}])
        chat.silences.append(Silence(began=101, ended=121, url=url))
        return bool(checker.check([chat], [hung], EMPTY, []).broken["silent"])

    assert not is_silent("http://a:1")
    assert is_silent("http://a:2")


def test_every_defect_names_invariants_and_faults_that_exist() -> None:
    names = set(checker.check([], [], EMPTY, []).broken)
    for defect, (_, faults, invariants) in DEFECTS.items():
        assert set(invariants) <= names, defect
        assert read(["--defect", defect, *(word for kind in faults for word in ("--only", kind))]).only == faults


def test_a_figure_without_a_measurement_is_not_at_its_goal() -> None:
    assert not figures.at_most("resumed", [], 0.99, 5).is_met
    assert figures.at_most("resumed", [1.0, 4.0], 0.99, 5).is_met
    assert not figures.at_most("resumed", [1.0, 6.0], 0.99, 5).is_met


def test_a_silence_that_another_fault_began_is_not_the_kills() -> None:
    def pause(deltas_at: list[float], other_at: float) -> float | None:
        seen = checker._pause(SimpleNamespace(deltas_at=deltas_at), 100.0, other_at)  # type: ignore[arg-type]
        return None if seen is None else round(seen, 2)

    back_soon = [99.9, 100.02, 100.5, 100.6, 100.7, 110.0]  # frames on their way, silence, back, another silence
    assert pause(back_soon, 101.5) == 9.3
    assert pause(back_soon, 100.72) == 0.48
    still_silent = [99.9, 100.02, 109.0, 109.1]  # when the other began, and longer because of it: the kill's
    assert pause(still_silent, 100.5) == 8.98
    assert pause(still_silent, 100.05) == 8.98
    assert pause([99.9, 108.0], 100.01) == 8.0
    assert pause([99.9], 101.0) is None


def test_a_kill_while_a_web_process_hangs_is_not_measured_by_its_readers() -> None:
    chat = Chat(number=1, client_id="c", user="u", text="", max_tokens=1, accepted=[{"generation": "g"}])
    chat.view.deltas_at = [99.9, 118.0]
    kill = Done(kind="kill_worker", began=100, ended=100, hit={"did": True, "running": ["g"]})
    hung = Done(kind="stop_web", began=90, ended=112, hit={"url": "http://a:1"})

    def measured(*faults: Done) -> str:
        return dict(checker.check([chat], faults, EMPTY, []).figures)["kill -9 to the next delta, p50 / p95 / p99 / n"]

    assert measured(kill).startswith("18.00 s")
    assert measured(kill, hung).endswith("/ 0")
