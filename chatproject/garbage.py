"""When Python looks for garbage in cycles: hardly ever at all it holds, which stops every stream of the process.

A full look through Django and Twisted took 135 ms, once in 400 messages; those that came meanwhile were its p99.
"""

from __future__ import annotations

import gc
from typing import Final

# What is young is looked at as often as ever, a millisecond each time; everything once in a million new objects.
THRESHOLDS: Final = (1_000, 20, 50)


def collect_rarely() -> None:
    """Leave out of every later look what there is now; call when all is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
