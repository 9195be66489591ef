"""Honest news of a wait: how many are ahead, how long that takes at today's pace, and whether anyone serves at all.

A position is told by running the policy of the claims forward on what waits now: 1 is claimed next. Who comes later may
still come first (a higher lane, a user who has had less), so a position may grow; it never tells what is not so now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from chatproject.contract import names, scripts
from chatproject.contract.errors import ContractError
from chatproject.contract.fairness import WaitingLane, claim_order, waiting_lanes
from chatproject.contract.messages import ModelStatus, WorkerStatus
from chatproject.generations.models import Generation
from chatproject.generations.streaming.reader import Queued
from chatproject.redis_client import AsyncClient

# How far the policy is run, and how many users of a lane it is told of: a few milliseconds for whatever number waits.
LOOK_CLAIMS: Final = 500
LOOK_USERS: Final = 128


class QueueNews:
    """What one waiting generation's readers were last told."""

    __slots__ = ("_told", "id", "lane", "model", "user_id")

    def __init__(self, generation_id: str) -> None:
        self.id = generation_id
        self.model = ""
        self.lane = ""
        self.user_id = ""
        self._told: Queued | None = None

    @property
    def is_known(self) -> bool:
        """Whether its queue is known."""
        return bool(self.model)

    def learn(self, row: Generation) -> None:
        """Take the queue from the row."""
        self.model, self.lane, self.user_id = row.model, row.lane, str(row.user_id)

    @staticmethod
    async def read(client: AsyncClient, waiting: Sequence[QueueNews]) -> dict[str, Queued]:
        """Return the news that changed, by generation id. Raises redis.RedisError."""
        if not waiting:
            return {}
        models = sorted({news.model for news in waiting})
        slots, statuses = await _models(client, models)
        positions = await _positions(client, models, waiting)
        told: dict[str, Queued] = {}
        for news in waiting:
            status, places = statuses.get(news.model), slots.get(news.model, 0)
            position = positions[news.id]
            queued = Queued(
                generation_id=news.id,
                position=position,
                eta_s=_eta(position, places, status),
                reason=None if places else ("loading" if news.model in slots else "no_worker"),
            )
            if queued != news._told:
                news._told = told[news.id] = queued
        return told


async def _positions(client: AsyncClient, models: Sequence[str], waiting: Sequence[QueueNews]) -> dict[str, int]:
    look = client.register_script(scripts.LOOK.source)
    orders: dict[str, dict[tuple[str, str, int], int]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for model in models:
        keys = [names.wait_key(model, lane) for lane in names.LANES]
        cost, lanes = waiting_lanes(await look(keys=keys, args=[LOOK_USERS, 1]))
        orders[model] = _order(lanes, cost)
        sizes |= {(model, lane.lane): lane.num_waiting for lane in lanes}
    pipe = client.pipeline(transaction=False)
    for news in waiting:
        pipe.zrank(names.line_key(news.model, news.lane, news.user_id), news.id)
        pipe.zrank(names.wait_key(news.model, news.lane), news.id)
    ranks: list[Any] = await pipe.execute()
    positions: dict[str, int] = {}
    for news, in_line, in_lane in zip(waiting, ranks[::2], ranks[1::2], strict=True):
        if in_lane is None:  # claimed or stopped a moment ago, or not there yet
            positions[news.id] = 1
            continue
        order = orders[news.model]
        # Beyond the look, lanes count whole and a lane's own by age.
        beyond = max(len(order) + 1, in_lane + 1 + _in_higher_lanes(sizes, news))
        positions[news.id] = order.get((news.lane, news.user_id, in_line), beyond)
    return positions


def _order(lanes: Sequence[WaitingLane], cost: float) -> dict[tuple[str, str, int], int]:
    """Return the position of each (lane, user, place in the user's line) as far as the look goes."""
    order: dict[tuple[str, str, int], int] = {}
    places: dict[tuple[str, str], int] = {}
    for position, who in enumerate(claim_order(lanes, cost, limit=LOOK_CLAIMS), 1):
        place = places[who] = places.get(who, -1) + 1
        order[*who, place] = position
    return order


def _in_higher_lanes(sizes: dict[tuple[str, str], int], news: QueueNews) -> int:
    higher = names.LANES[: names.LANES.index(names.Lane(news.lane))]
    return sum(sizes.get((news.model, lane), 0) for lane in higher)


def _eta(position: int, places: int, status: ModelStatus | None) -> float | None:
    """Seconds until the start, at ``places / seconds_per_generation``. None when nothing is known."""
    if not places or status is None or not status.seconds_per_generation:
        return None
    return round(position * status.seconds_per_generation / places, 1)


async def _models(client: AsyncClient, models: Sequence[str]) -> tuple[dict[str, int], dict[str, ModelStatus]]:
    """Return places of ready workers (0 = only loading ones) and statuses, by model."""
    known: Any = await client.smembers(names.WORKERS_KEY)
    pipe = client.pipeline(transaction=False)
    for slot in known:
        pipe.get(names.worker_key(slot))
    for model in models:
        pipe.get(names.model_key(model))
    answers = await pipe.execute()
    slots: dict[str, int] = {}
    for text in answers[: len(known)]:
        try:
            worker = WorkerStatus.from_json(text) if text else None
        except ContractError:
            worker = None
        if worker is not None:
            slots[worker.model] = slots.get(worker.model, 0) + (worker.slots if worker.state == "ready" else 0)
    statuses: dict[str, ModelStatus] = {}
    for model, text in zip(models, answers[len(known) :], strict=True):
        try:
            if text:
                statuses[model] = ModelStatus.from_json(text)
        except ContractError:
            pass
    return slots, statuses
