"""`make bench`: every benchmark whose peer is importable, one table. A missing peer fails its row."""

from __future__ import annotations

import importlib
import os
import sys

from tests.bench.table import Row, show

BENCHES = ("bench_engine", "bench_batching", "bench_int4")


def main() -> int:
    """Run them all; status 1 when one could not run."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "--build-peers" in sys.argv:
        print("bench-peers: no peer needs building yet; running those that are importable.")
    rows: list[Row] = []
    failed = False
    for name in BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(f"tests.bench.{name}").rows()
        except ImportError as error:
            failed = True
            rows.append(Row(what=name, against="-", ratio="FAILED", goal="-", note=f"missing: {error.name}"))
    print(show(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
