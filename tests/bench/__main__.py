"""`make bench`: every benchmark whose peer is importable, one table. A missing peer, or any failure, fails its row."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from tests.bench.table import Row, show

# bench_streaming is run by its name until it has been measured on a quiet machine.
BENCHES = ("bench_engine", "bench_batching", "bench_int4")


def main() -> int:
    """Run them all, or those that are named; status 1 when one could not run."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "--build-peers" in sys.argv:
        print("bench-peers: no peer needs building yet; running those that are importable.")
    rows: list[Row] = []
    failed = False
    for name in [name for name in sys.argv[1:] if not name.startswith("-")] or BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(f"tests.bench.{name}").rows()
        except Exception as error:
            # What others measured is still told.
            traceback.print_exc()
            failed = True
            reason = f"missing: {error.name}" if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            rows.append(Row(what=name, against="-", ratio="FAILED", goal="-", note=reason))
    print(show(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
