"""Set the clock of a worker wrong, for what asks `time.time`: today its libraries alone, and nothing may go by it."""

from __future__ import annotations

import os
import random
import sys
import time

MOST_S = 3600.0


def set_wrong() -> None:
    """From now on `time.time` of this process is off by up to an hour; each process has its own error."""
    real, real_ns = time.time, time.time_ns
    off_s = random.Random(os.getpid()).uniform(-MOST_S, MOST_S)
    time.time = lambda: real() + off_s
    time.time_ns = lambda: real_ns() + int(off_s * 1e9)
    print(f"chaos: this clock is {off_s:+.0f} s off", file=sys.stderr)
