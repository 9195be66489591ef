"""`make bench`: every benchmark, one table. A missing peer, or any failure, fails its row.

Status 1 when a row failed, but for a peer that only `make bench-peers` builds.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from tests.bench.llamacpp import build
from tests.bench.table import Row, failed, show

BENCHES = (
    "bench_fairness", "bench_engine", "bench_prefix", "bench_batching", "bench_llamacpp", "bench_prepacked",
    "bench_int4", "bench_streaming",
)  # fmt: skip


def main() -> int:
    """Run them all, or those that are named; status 1 when one could not run."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "--build-peers" in sys.argv:
        build.build()
    rows: list[Row] = []
    has_failed = False
    for name in [name for name in sys.argv[1:] if not name.startswith("-")] or BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found = importlib.import_module(f"tests.bench.{name}").rows()
            print(show(found), file=sys.stderr, flush=True)  # of what takes an hour, see the beginning
            rows += found
            has_failed |= any(row.ratio == "FAILED" for row in found)
        except Exception as error:
            # What others measured is still told.
            if not isinstance(error, build.PeerNotBuilt):
                traceback.print_exc()
            has_failed |= not isinstance(error, build.PeerNotBuilt)
            rows.append(failed(name, error))
    print(show(rows))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
