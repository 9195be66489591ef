"""What the workers last said of each model, without ever waiting for Redis: admission asks inside a transaction.

A value is at most REFRESH_S old while anybody asks; an older one is given at once and read again in the background.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from chatproject.contract.messages import ModelStatus
from chatproject.generations import selectors

REFRESH_S: Final = 2.0

_lock = threading.Lock()
_known: dict[str, tuple[float, ModelStatus | None]] = {}
_asked: set[str] = set()
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-states")


def latest(slug: str) -> ModelStatus | None:
    """Return what is known now; None when nothing is yet. Never waits and never raises."""
    with _lock:
        read_at, status = _known.get(slug, (0.0, None))
        is_old = time.monotonic() - read_at > REFRESH_S
        if is_old and slug not in _asked:
            _asked.add(slug)
            _thread.submit(refresh, slug)
    return status


def refresh(slug: str) -> None:
    """Read the status of one model now; waits for Redis as long as its client does. The last known value is kept."""
    status = selectors.model_status(slug)
    with _lock:
        _asked.discard(slug)
        _known[slug] = (time.monotonic(), status or _known.get(slug, (0.0, None))[1])


def forget() -> None:
    """Forget everything, as after a start."""
    with _lock:
        _known.clear()
