"""`make chaos`: start the service, let users chat, break it on purpose, check the invariants, print the table."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import disk, options, series
from tests.chaos.cluster import cluster
from tests.chaos.options import Options
from tests.chaos.run import play
from tests.chaos.scenarios import SCENARIOS, figures
from tests.chaos.table import text_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once; 1 when an invariant is broken, 2 when the run proves nothing."""
    if not disk.enter():
        print("chaos: fill_disk is left out: it needs root", flush=True)
    wanted = options.read(arguments)
    if wanted.series:
        return series.run(wanted.series, wanted.seed)
    if wanted.scenario:
        return _measure(wanted)
    print(f"chaos: seed {wanted.seed}, {wanted.chats} chats, {wanted.faults} faults, {wanted.database}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chat-chaos-", ignore_cleanup_errors=True) as directory:
        try:
            verdict = play(wanted, Path(directory))
        finally:
            if wanted.keep:
                _keep(Path(directory), Path(wanted.keep))
    print(text_of(verdict, wanted))
    return 2 if verdict.void else 0 if verdict.is_good else 1


def _measure(wanted: Options) -> int:
    print(f"chaos: {wanted.scenario}, seed {wanted.seed}, {wanted.database}", flush=True)
    scenario = SCENARIOS[wanted.scenario]
    with tempfile.TemporaryDirectory(prefix="chat-chaos-", ignore_cleanup_errors=True) as directory:
        try:
            with cluster(wanted, Path(directory), **scenario.environment) as running:
                found = asyncio.run(scenario.play(running, wanted.seed))
        finally:
            if wanted.keep:
                _keep(Path(directory), Path(wanted.keep))
    print(figures.text_of(found))
    print(f"Again: {wanted.again()}")
    return 0 if all(figure.is_met for figure in found) else 1


def _keep(directory: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    found = [directory / "history.jsonl", directory / "checkout" / "up.out", *directory.glob("checkout/var/log/*")]
    for path in found:
        if path.is_file():
            shutil.copy2(path, target / path.name)


if __name__ == "__main__":
    sys.exit(main())
