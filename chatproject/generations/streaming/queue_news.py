"""Honest news of a wait: how many are ahead, how long that takes at today's pace, and whether anyone serves at all.

Pure but for one pipeline. A position counts everyone in higher lanes and everyone earlier in the same lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatproject.contract import names
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import ModelStatus, WorkerStatus
from chatproject.generations.models import Generation
from chatproject.generations.streaming.reader import Queued
from chatproject.redis_client import AsyncClient


class QueueNews:
    """What one waiting generation's readers were last told."""

    __slots__ = ("_told", "id", "lane", "model")

    def __init__(self, generation_id: str) -> None:
        self.id = generation_id
        self.model = ""
        self.lane = ""
        self._told: Queued | None = None

    @property
    def is_known(self) -> bool:
        """Whether its queue is known."""
        return bool(self.model)

    def learn(self, row: Generation) -> None:
        """Take the queue from the row."""
        self.model, self.lane = row.model, row.lane

    @staticmethod
    async def read(client: AsyncClient, waiting: Sequence[QueueNews]) -> dict[str, Queued]:
        """Return the news that changed, by generation id. Raises redis.RedisError."""
        if not waiting:
            return {}
        models = sorted({news.model for news in waiting})
        slots, statuses, sizes = await _models(client, models)
        pipe = client.pipeline(transaction=False)
        for news in waiting:
            pipe.zrank(names.wait_key(news.model, news.lane), news.id)
        ranks: list[Any] = await pipe.execute()
        told: dict[str, Queued] = {}
        for news, rank in zip(waiting, ranks, strict=True):
            status, places = statuses.get(news.model), slots.get(news.model, 0)
            ahead = 0 if rank is None else rank + _in_higher_lanes(sizes, news)
            queued = Queued(
                generation_id=news.id,
                position=ahead + 1,
                eta_s=_eta(ahead, places, status),
                reason=None if places else ("loading" if news.model in slots else "no_worker"),
            )
            if queued != news._told:
                news._told = told[news.id] = queued
        return told


def _in_higher_lanes(sizes: dict[tuple[str, str], int], news: QueueNews) -> int:
    higher = names.LANES[: names.LANES.index(names.Lane(news.lane))]
    return sum(sizes.get((news.model, lane), 0) for lane in higher)


def _eta(ahead: int, places: int, status: ModelStatus | None) -> float | None:
    """Seconds until the start: those ahead leave at ``places / seconds_per_generation``. None when nothing is known."""
    if not places or status is None or not status.seconds_per_generation:
        return None
    return round((ahead + 1) * status.seconds_per_generation / places, 1)


async def _models(
    client: AsyncClient, models: Sequence[str]
) -> tuple[dict[str, int], dict[str, ModelStatus], dict[tuple[str, str], int]]:
    """Return places of ready workers (0 = only loading ones), statuses and lane sizes, by model."""
    known: Any = await client.smembers(names.WORKERS_KEY)
    pipe = client.pipeline(transaction=False)
    for slot in known:
        pipe.get(names.worker_key(slot))
    for model in models:
        pipe.get(names.model_key(model))
        for lane in names.LANES:
            pipe.zcard(names.wait_key(model, lane))
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
    sizes: dict[tuple[str, str], int] = {}
    rest = iter(answers[len(known) :])
    for model in models:
        text = next(rest)
        try:
            if text:
                statuses[model] = ModelStatus.from_json(text)
        except ContractError:
            pass
        for lane in names.LANES:
            sizes[model, lane] = next(rest)
    return slots, statuses, sizes
