"""What one run is asked to do."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run; the seed chooses users and faults, the machine chooses the rest."""

    seed: int
    chats: int
    faults: int
    seconds: float  # over which chats and faults are spread
    database: str  # sqlite or postgres
    redis: str  # log: with its append-only file; memory: what it holds dies with it
    engine: str  # fake or torch
    mixed: bool  # workers of three versions
    clocks: str  # whose are wrong by up to an hour: workers, or all
    defect: str  # of `planted`, or empty
    keep: str  # where to leave history and logs; empty: nowhere
    scenario: str  # of `scenarios`, instead of all else
    only: tuple[str, ...]  # kinds of faults; empty: all
    series: str  # everything, defects, or empty: this one run

    def again(self) -> str:
        """Return the command that asks for the same run."""
        if self.scenario:
            return f"make chaos ARGS='--scenario {self.scenario} --seed {self.seed} --database {self.database}'"
        words = [f"--seed {self.seed} --chats {self.chats} --faults {self.faults} --seconds {self.seconds:g}"]
        words += [f"--database {self.database}", *(f"--only {kind}" for kind in self.only)]
        words += ["--redis memory"] if self.redis == "memory" else []
        words += ["--engine torch"] if self.engine == "torch" else []
        words += ["--mixed"] if self.mixed else []
        words += ["--clocks workers"] if self.clocks == "workers" else []
        words += [f"--defect {self.defect}"] if self.defect else []
        return f"make chaos ARGS='{' '.join(words)}'"


def read(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    from tests.chaos import disk
    from tests.chaos.faults import FAULTS, NEEDS_POSTGRESQL
    from tests.chaos.planted.sitecustomize import DEFECTS
    from tests.chaos.scenarios import SCENARIOS

    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the same users and faults again (default: drawn)")
    parser.add_argument("--chats", type=int, default=300)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0, help="over which they are spread (default: 6 a fault)")
    parser.add_argument("--quick", action="store_true", help="100 chats and 10 faults, under 2 minutes")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--redis", choices=("log", "memory"), default="log", help="memory: without its log file")
    parser.add_argument("--engine", choices=("fake", "torch"), default="fake", help="torch: the bundled model")
    parser.add_argument("--mixed", action="store_true", help="one worker of a newer contract, one of the first")
    parser.add_argument("--clocks", choices=("all", "workers"), default="all", help="whose are wrong (default: all)")
    parser.add_argument("--defect", choices=sorted(DEFECTS), default="", help="plant one; the run must then fail")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), default=[], help="these faults alone")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="", help="measure one thing, with its goal")
    parser.add_argument(
        "--everything", dest="series", action="store_const", const="everything", default="",
        help="the full set and every scenario on both databases, then every defect: about an hour",
    )  # fmt: skip
    parser.add_argument(
        "--defects", dest="series", action="store_const", const="defects", help="every defect, each must be caught"
    )
    parser.add_argument("--keep", default="", metavar="DIR", help="leave the history and the logs there")
    found = parser.parse_args(arguments)
    if found.series and (found.only or found.defect or found.scenario or found.keep or found.quick):
        parser.error("--everything and --defects choose for themselves: only --seed goes with them")
    chats, faults = (100, 10) if found.quick else (found.chats, found.faults)
    seconds = found.seconds or (50.0 if found.quick else max(20.0, faults * 6.0))
    if NEEDS_POSTGRESQL & set(found.only) and found.database == "sqlite":
        parser.error(f"{' and '.join(sorted(NEEDS_POSTGRESQL))} need --database postgres")
    if "fill_disk" in found.only and not disk.is_possible():
        parser.error("fill_disk needs root")
    seed = random.SystemRandom().randrange(1_000_000) if found.seed is None else found.seed
    return Options(
        seed=seed, chats=chats, faults=faults, seconds=seconds, database=found.database, defect=found.defect,
        redis=found.redis, engine=found.engine, mixed=found.mixed, clocks=found.clocks, keep=found.keep,
        scenario=found.scenario, only=tuple(found.only), series=found.series,
    )  # fmt: skip
