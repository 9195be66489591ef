"""Every name that travels between processes: lanes, queues, tasks, Redis keys, channels.

Knows no client and no settings; a name is a pure function of ids.
"""

from __future__ import annotations

import enum
import re
from typing import Final


class Lane(enum.StrEnum):
    """How urgent a generation is; a user's plan decides it. Order of definition is order of service."""

    VIP = "vip"
    INTERACTIVE = "interactive"
    BACKGROUND = "background"
    BATCH = "batch"


# Celery on Redis serves 0 first. RabbitMQ serves the highest first: `broker.priority_of` maps once.
PRIORITY: Final[dict[Lane, int]] = {Lane.VIP: 0, Lane.INTERACTIVE: 3, Lane.BACKGROUND: 6, Lane.BATCH: 9}
LANES: Final[tuple[Lane, ...]] = tuple(Lane)

GENERATE_TASK: Final = "chat.generate"
RECORDS_QUEUE: Final = "records"
RECORDS_FINISH_TASK: Final = "records.finish"
SUBPROTOCOL: Final = "chat.v1"

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def model_slug(name: str) -> str:
    """Return the slug of a model directory or hub id: ``Org/My Model`` becomes ``my-model``."""
    tail = name.rstrip("/").rsplit("/", 1)[-1].lower()
    slug = re.sub(r"[^a-z0-9._-]+", "-", tail).strip("-._")[:63]
    return slug or "model"


def is_model_slug(text: str) -> bool:
    """Say whether ``text`` may stand in a queue name and a key."""
    return _SLUG.fullmatch(text) is not None


def generate_queue(model: str) -> str:
    """Return the Celery queue of one model."""
    return f"generate.{model}"


def model_of_queue(queue: str) -> str:
    """Return the model whose tickets travel in ``queue``."""
    return queue.removeprefix("generate.")


def wait_key(model: str, lane: str) -> str:
    """Sorted set of generation ids that wait; score = accepted time of the database in ms, the same at every return."""
    return f"wait:{model}:{lane}"


def turns_key(model: str, lane: str) -> str:
    """Sorted set of the users who wait in a lane; the smallest score is next (`fairness.turn_of`)."""
    return f"turns:{model}:{lane}"


def line_key(model: str, lane: str, user_id: str) -> str:
    """Sorted set: what of one user's waits in a lane; members and scores as in the wait key."""
    return f"line:{model}:{lane}:{user_id}"


def about_key(model: str, lane: str) -> str:
    """Hash, generation id to `fairness.About`: of all that wait in a lane."""
    return f"about:{model}:{lane}"


def served_key(model: str, lane: str) -> str:
    """Sorted set of users; score = the service each has had, in weighted cost. Shared by all workers."""
    return f"served:{model}:{lane}"


def fair_key(model: str) -> str:
    """Hash: `clock:<lane>`, `floor:<lane>` and `credit:<lane>` of `fairness`, and `cost`, the mean of a claim."""
    return f"fair:{model}"


def request_key(generation_id: str) -> str:
    """String: the GenerationRequest as JSON."""
    return f"req:{generation_id}"


def lease_key(generation_id: str) -> str:
    """String ``<slot>:<boot>:<run>``, alive for LEASE_MS: who serves this generation now."""
    return f"lease:{generation_id}"


# Set of generation ids whose worker is known to have died, alive for LOST_MS: nobody need wait for their leases.
LOST_KEY: Final = "lost"


def log_key(generation_id: str) -> str:
    """Stream, entries ``<run>-<seq>``: the generation log."""
    return f"gen:{generation_id}"


def cancel_key(generation_id: str) -> str:
    """String, present when a stop was asked for."""
    return f"cancel:{generation_id}"


def watch_key(generation_id: str) -> str:
    """Sorted set of channel names that want the frames; score = expiry in ms."""
    return f"watch:{generation_id}"


# Set of the slots that said something lately; readers ask each one's worker_key, which says whether it lives. A scan
# for those would walk over every log and request there is.
WORKERS_KEY: Final = "workers"


def worker_key(slot: str) -> str:
    """String (JSON WorkerStatus), alive for WORKER_MS: what one worker slot holds."""
    return f"worker:{slot}"


def model_key(model: str) -> str:
    """String (JSON ModelStatus), alive for MODEL_MS: what the workers say of a model."""
    return f"model:{model}"


def control_channel(slot: str) -> str:
    """Redis pub/sub channel on which one worker hears cancel, watch and drain."""
    return f"control:{slot}"


LEASE_MS: Final = 5_000
WORKER_MS: Final = 5_000
LOST_MS: Final = 20_000
WORKERS_MS: Final = 60_000
MODEL_MS: Final = 24 * 3600 * 1000
# A request and a log outlive the longest wait and the longest run; the database holds the truth afterwards.
REQUEST_MS: Final = 24 * 3600 * 1000
LOG_MS: Final = 24 * 3600 * 1000
FAIR_MS: Final = 3600 * 1000  # after an hour in which nobody was served, all are equal again
STORED_LOG_MS: Final = 10 * 60 * 1000
WATCH_MS: Final = 60_000
