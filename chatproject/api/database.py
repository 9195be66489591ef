"""The ORM from async views: in a few threads of the API's own, never in the one that all requests share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from channels.db import database_sync_to_async

_P = ParamSpec("_P")
_T = TypeVar("_T")
_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="api-database")


async def run(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run ``work`` in a thread with a database connection; its exceptions come back as they are."""
    done: _T = await database_sync_to_async(work, thread_sensitive=False, executor=_threads)(*args, **kwargs)
    return done
