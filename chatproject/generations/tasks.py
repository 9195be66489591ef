"""Celery tasks of the `records` queue, and the sweeper's thread in each records process."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import shared_task
from celery.signals import worker_ready, worker_shutting_down
from django import db

from chatproject.contract import names
from chatproject.contract.frames import Frame
from chatproject.generations import announcer, records
from chatproject.generations.sweeper import Sweeper

log = logging.getLogger(__name__)
_sweeper = Sweeper()


@shared_task(name=names.RECORDS_FINISH_TASK)
def finish(generation_id: str) -> None:
    """Copy the end of a generation to its row and show it. The worker and the sweeper repeat what fails here."""
    try:
        stored = records.store(generation_id)
    finally:
        db.close_old_connections()  # those that broke or are due; opening one for each end takes longer than storing it
    if stored is None:
        return
    row = stored.generation
    frame = Frame(
        generation_id=str(row.id), run=stored.run, seq=row.end_seq, kind="end", at=len(row.answer), end=stored.end
    )
    # The channel that the request names is registered only when its hub renews: it may be missing in the set.
    channels = {*stored.channels, row.request.get("watcher") or ""} - {""}
    announcer.get_announcer().send_frames(sorted(channels), [frame])
    if stored.is_new:
        announcer.get_announcer().notice(
            user_id=str(row.user_id), thread=str(row.thread) if row.thread else None, generation_id=str(row.id),
            status=row.status,
        )  # fmt: skip


@worker_ready.connect
def _start_sweeper(sender: Any = None, **_: object) -> None:
    threading.Thread(target=_sweeper.run, name="sweeper", daemon=True).start()


@worker_shutting_down.connect
def _stop_sweeper(sender: Any = None, **_: object) -> None:
    _sweeper.stop()
