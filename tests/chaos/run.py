"""One run from the start of the service to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from chatproject.contract import names
from tests.chaos import asking, checker, nemesis, onlooker, spare_tickets
from tests.chaos.chats import Chat
from tests.chaos.checker import Verdict
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.history import History
from tests.chaos.options import Options

CALM_S = 60.0  # after the last fault everything must have ended
REST_S = 15.0  # and then nothing may be left


def play(wanted: Options, directory: Path) -> Verdict:
    """Run it; raises when the service does not start."""
    with cluster(wanted, directory) as running:
        return asyncio.run(_play(wanted, running, directory / "history.jsonl"))


async def _play(wanted: Options, running: Cluster, path: Path) -> Verdict:
    with contextlib.closing(History(path)) as history:
        chats = asking.make_chats(wanted.chats, sorted(running.users), wanted.seed, engine=wanted.engine)
        kinds = nemesis.choose_faults(wanted.seed, wanted.faults, wanted.only, wanted.database)
        going: dict[int, asyncio.Task[None]] = {}
        for chat in chats:
            before = going.get(chat.after.number) if chat.after is not None else None
            going[chat.number] = asyncio.create_task(_chat(chat, before, running, history, wanted))
        with onlooker.looking(running.service.state["database"]) as seen:
            faults = await nemesis.run(
                running, history, seed=wanted.seed, kinds=kinds, first_s=3.0, over_s=max(1.0, wanted.seconds - 6)
            )
            await _wait(list(going.values()), wanted)
        assert seen.looks, "the database was never looked into"
        left = await asyncio.to_thread(_left_at_rest, running)
        started = await asyncio.to_thread(spare_tickets.send, running)
        database = await asyncio.to_thread(running.read_all)
        return checker.check(chats, faults, database, left, busy_twice=sorted(seen.busy_twice), started=started)


async def _chat(
    chat: Chat, before: asyncio.Task[None] | None, running: Cluster, history: History, wanted: Options
) -> None:
    if before is not None:
        await asyncio.wait([before])
    else:  # Spread over the whole time, so that every fault meets some.
        await asyncio.sleep(random.Random(f"{wanted.seed} {chat.number}").uniform(0, wanted.seconds))
    await asking.user_of(chat, running, history, wanted.seed).live()


async def _wait(going: Sequence[asyncio.Task[Any]], wanted: Options) -> None:
    _, late = await asyncio.wait(going, timeout=CALM_S + wanted.seconds / 4)
    for task in late:
        task.cancel()
    results = await asyncio.gather(*going, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise error


def _left_at_rest(running: Cluster) -> list[str]:
    """Return keys that hold something although nothing runs; they are given some seconds to go."""
    deadline = time.monotonic() + REST_S
    while True:
        found = _held(running)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _held(running: Cluster) -> list[str]:
    try:
        with running.redis() as client:
            found = [key for key in client.scan_iter(count=1000) if _must_go(key, client)]
    except redis.RedisError as error:
        return [f"Redis: {error!r}"]
    return found


def _must_go(key: str, client: redis.Redis) -> bool:
    if key.startswith((names.lease_key(""), "wait:")):
        return True
    # Tickets may be left, and broker bindings; none of them starts a task.
    is_brokers = key.endswith(".pidbox") or key.startswith(("generate.", "_kombu", "unacked", names.RECORDS_QUEUE))
    return not is_brokers and client.ttl(key) == -1
