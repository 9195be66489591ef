"""The task that Flower shows: it runs when the engine is done, and only says how the generation ended."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Retry

from chatproject.contract import names
from workers.app import app


class GenerationFailed(RuntimeError):
    """A generation ended as failed; its reader was told why."""


# typing=False: a ticket has no arguments; the strategy puts the id of the generation served in their place.
@app.task(name=names.GENERATE_TASK, bind=True, typing=False, Strategy="workers.claiming:strategy")
def generate(self: Any, generation_id: str) -> str:
    """Say how it ended: succeeded, failed, revoked, or RETRY for a hand-back, which a new start may follow."""
    outcome: str = generate.outcome
    if outcome.startswith("handed back"):
        raise Retry(outcome)
    if outcome == "revoked":
        raise Ignore  # Celery has already sent task-revoked
    if outcome == "failed":
        raise GenerationFailed(generation_id)
    return outcome
