"""What a web process knows before its first message is admitted."""

from __future__ import annotations

import contextlib
import logging

from django import db

from chatproject.contract import names
from chatproject.generations import dispatch, model_states, tickets
from chatproject.generations.models import ServedModel
from chatproject.redis_client import AWAY

log = logging.getLogger(__name__)


def warm() -> None:
    """Know the models, for whose state no message may wait, and how one is enqueued.

    Blocks. Never raises for a database or a Redis that is away.
    """
    try:
        slugs = list(ServedModel.objects.filter(is_enabled=True).values_list("slug", flat=True))
    except db.Error as error:
        log.warning("the models are not known yet: %r", error)
        return
    for slug in slugs:
        model_states.refresh(slug)
        for lane in names.LANES:
            tickets.make(slug, lane)
    with contextlib.suppress(*AWAY):
        dispatch.open_connections()
