"""Runs of chaos one after the other, each by its own command, and one table of them all."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.chaos.planted.sitecustomize import DEFECTS
from tests.chaos.scenarios import SCENARIOS

FULL: Final = "--chats 1000 --faults 100"
COMMAND: Final = (sys.executable, "-u", "-m", "tests.chaos")
DATABASES: Final = ("sqlite", "postgres")
# So many faults of its kind over so long show a defect, with any seed: most have a window of a second or two.
_USUAL: Final = "--chats 60 --seconds 30"
SHOWING: Final = {
    "no_sweep": "--faults 10 --chats 100 --seconds 40",
    "no_top_up": f"--faults 4 {_USUAL}",
    "no_gap_check": f"--faults 5 {_USUAL}",
    "channel_layer_alone": f"--faults 4 {_USUAL}",
    "settle_outside_the_transaction": f"--faults 5 {_USUAL}",
    "finished_before_the_commit": f"--faults 4 {_USUAL}",
    "no_idempotency": f"--faults 4 {_USUAL}",
    "claim_in_two_steps": f"--faults 5 {_USUAL}",
    "fence_by_the_attempt": "--faults 5 --chats 60 --seconds 40",
    "publish_with_the_xadd": f"--faults 4 {_USUAL}",
    "ack_before_commit": f"--faults 5 {_USUAL}",
    "lease_on_a_workers_clock": f"--faults 4 {_USUAL}",
    "two_at_once": "--faults 2 --chats 60 --seconds 20",
}
# What a run says in the end: of its invariants, its figures, or its defect.
_SAYS: Final = re.compile(
    r"chaos: (every invariant held|FAILED|this run proves nothing.*|\w+ was .*(?i:caught).*)(?=\.|$)|MISSED"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One run of a series."""

    name: str
    arguments: str
    defect: str = ""

    def judge(self, status: int, said: str) -> tuple[bool, str]:
        """Return whether it is as it should be, and a few words of why."""
        words = [found.group(1) or "a goal was missed" for found in map(_SAYS.search, said.splitlines()) if found]
        if self.defect:
            return status == 1 and any(" was caught by " in word for word in words), _one_of(words, self.defect)
        figure = next((line for line in said.splitlines() if "to the next delta" in line), "")
        is_good = status == 0 and "a goal was missed" not in words
        note = _one_of(words, "goal", "invariant", "proves", "FAILED") or ("at goal" if is_good else f"status {status}")
        return is_good, " ".join([note, *figure.split("|")[2:]]).strip()


def parts(series: str, seed: int) -> Iterator[Part]:
    """Yield what belongs to ``everything`` or ``defects``."""
    if series == "everything":
        for database in DATABASES:
            yield Part(name=f"full set, {database}", arguments=f"{FULL} --database {database} --seed {seed}")
            for scenario in sorted(SCENARIOS):
                arguments = f"--scenario {scenario} --database {database} --seed {seed}"
                yield Part(name=f"{scenario}, {database}", arguments=arguments)
    for defect, (_, kinds, _) in DEFECTS.items():
        only = " ".join(f"--only {kind}" for kind in kinds)
        arguments = f"--defect {defect} {only} {SHOWING[defect]} --seed {seed}"
        yield Part(name=f"defect {defect}", arguments=arguments, defect=defect)


def run(series: str, seed: int) -> int:
    """Run them all, whatever comes of each; 1 unless every one is as it should be."""
    lines, is_good = [], True
    for part in parts(series, seed):
        print(f"\n--- {part.name}: make chaos ARGS='{part.arguments}'", flush=True)
        began_s = time.monotonic()
        status, said = _output(part.arguments)
        passed, words = part.judge(status, said)
        is_good &= passed
        lines.append(
            f"| {part.name:<44} | {time.monotonic() - began_s:>5.0f} s | {words}{'' if passed else '  BROKEN'}"
        )
    print("\n" + "\n".join(lines))
    print(f"chaos: {'all as it should be' if is_good else 'NOT all as it should be'}, seed {seed}")
    return 0 if is_good else 1


def _output(arguments: str) -> tuple[int, str]:
    said = []
    with subprocess.Popen(
        [*COMMAND, *arguments.split()], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    return process.returncode, "".join(said)


def _one_of(words: list[str], *wanted: str) -> str:
    return next((word for each in wanted for word in words if each in word), "")
