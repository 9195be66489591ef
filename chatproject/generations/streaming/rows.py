"""Rows of generations for the hub, and the threads that it reads them in."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from channels.db import database_sync_to_async

from chatproject.batched import Batched
from chatproject.generations.models import Generation

# Not Channels' one thread per process: a slow query of one reader must not hold up the others.
in_database_thread = functools.partial(
    database_sync_to_async,
    thread_sensitive=False,
    executor=ThreadPoolExecutor(max_workers=4, thread_name_prefix="hub"),
)


class Rows(Batched[str, Generation]):
    """Reads rows by id, as they are stored, without their requests. Raises django.db.Error."""

    def __init__(self) -> None:
        super().__init__(_read)


@in_database_thread
def _read(ids: Sequence[str]) -> dict[str, Generation]:
    return {str(row.id): row for row in Generation.objects.filter(id__in=ids).defer("request")}
