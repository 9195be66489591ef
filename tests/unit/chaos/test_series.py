"""A series runs all that the harness has, and takes no failure, no missed goal and no uncaught defect for success."""

from __future__ import annotations

import sys

import pytest

from tests.chaos import options, series
from tests.chaos.planted.sitecustomize import DEFECTS
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.series import Part

FULL = Part(name="full set", arguments="")
DEFECT = Part(name="defect no_sweep", arguments="", defect="no_sweep")
FIGURE = "| kill -9 to the next delta, p50 / p95 / p99 / n  | 0.5 s / 1.0 s / 1.2 s / 70"
HELD = "chaos: every invariant held. Again: make chaos ARGS='--seed 1'"


def test_everything_is_all_scenarios_on_both_databases_and_every_defect() -> None:
    found = list(series.parts("everything", 7))
    assert len(found) == 2 * (1 + len(SCENARIOS)) + len(DEFECTS)
    assert {part.defect for part in found} - {""} == set(DEFECTS) == set(series.SHOWING)
    for part in found:
        wanted = options.read(part.arguments.split())
        assert wanted.seed == 7
        assert wanted.defect == part.defect
        assert not part.defect or set(wanted.only) == set(DEFECTS[part.defect][1])


@pytest.mark.parametrize(
    ("part", "status", "said", "is_good"),
    [
        (FULL, 0, f"{FIGURE}\n{HELD}", True),
        (FULL, 0, f"{FIGURE}  MISSED\n{HELD}", False),
        (FULL, 1, f"| lost | 2  BROKEN\n{FIGURE}\nchaos: FAILED. Again: make", False),
        (FULL, 2, "chaos: this run proves nothing: only 1 of 9 kills hit a running generation\n", False),
        (FULL, 1, "Traceback (most recent call last):", False),
        (DEFECT, 1, "chaos: no_sweep was caught by lost\nchaos: FAILED. Again: make", True),
        (DEFECT, 1, "chaos: no_sweep was NOT CAUGHT\nchaos: FAILED. Again: make", False),
        (DEFECT, 0, f"chaos: no_sweep was NOT CAUGHT\n{HELD}", False),
    ],
)
def test_a_run_is_judged_by_what_it_says(part: Part, status: int, said: str, is_good: bool) -> None:
    passed, words = part.judge(status, said)
    assert passed == is_good
    assert words


def test_one_failure_fails_the_series(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes, which only speak as runs do."""
    says = "import sys; print('| x | 1 | 2' + '  MISSED' * int(sys.argv[1]))"
    chosen = [Part(name=f"part {number}", arguments=str(number)) for number in (0, 1)]
    monkeypatch.setattr(series, "COMMAND", (sys.executable, "-c", says))
    monkeypatch.setattr(series, "parts", lambda *_: iter(chosen[:1]))
    assert series.run("defects", 1) == 0
    monkeypatch.setattr(series, "parts", lambda *_: iter(chosen))
    assert series.run("defects", 1) == 1
    printed = capsys.readouterr().out
    assert "part 1" in printed.splitlines()[-2]
    assert "BROKEN" in printed.splitlines()[-2]
