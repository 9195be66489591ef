"""`make chaos`: start the service, let users chat, break it on purpose, check the invariants, print the table."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import disk, options
from tests.chaos.run import play
from tests.chaos.table import text_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once; 1 when an invariant is broken, 2 when the run proves nothing."""
    if not disk.enter():
        print("chaos: fill_disk is left out: it needs root", flush=True)
    wanted = options.read(arguments)
    print(f"chaos: seed {wanted.seed}, {wanted.chats} chats, {wanted.faults} faults, {wanted.database}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chat-chaos-", ignore_cleanup_errors=True) as directory:
        try:
            verdict = play(wanted, Path(directory))
        finally:
            if wanted.keep:
                _keep(Path(directory), Path(wanted.keep))
    print(text_of(verdict, wanted))
    return 2 if verdict.void else 0 if verdict.is_good else 1


def _keep(directory: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    found = [directory / "history.jsonl", directory / "checkout" / "up.out", *directory.glob("checkout/var/log/*")]
    for path in found:
        if path.is_file():
            shutil.copy2(path, target / path.name)


if __name__ == "__main__":
    sys.exit(main())
