"""Set the clock of a process wrong, for what asks `time.time` and Django's `timezone.now`: nothing may go by it.

Of a worker only its libraries ask. Whom the clocks of web and records hosts mislead is what a run is to show.
"""

from __future__ import annotations

import math
import os
import random
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType

MOST_S = 3600.0
Change = Callable[[ModuleType], None]


def set_wrong() -> dict[str, Change]:
    """From now on `time.time` of this process is off by up to an hour; each process has its own error.

    Of two web processes one is behind and one is ahead, so that neither error is missing in any run. Returns what
    `after_import` has to change, so that Django's clock is off by the same.
    """
    real, real_ns = time.time, time.time_ns
    off_s = random.Random(os.getpid()).uniform(-MOST_S, MOST_S)
    if port := re.search(r"tcp:port=(\d+)", " ".join(sys.orig_argv)):
        off_s = math.copysign(off_s, int(port[1]) % 2 - 0.5)
    time.time = lambda: real() + off_s
    time.time_ns = lambda: real_ns() + int(off_s * 1e9)
    print(f"chaos: this clock is {off_s:+.0f} s off", file=sys.stderr)

    def change(module: ModuleType) -> None:
        now = module.now
        module.now = lambda: now() + timedelta(seconds=off_s)

    return {"django.utils.timezone": change}
