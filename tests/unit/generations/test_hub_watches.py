"""Who watches what is in Redis for a while only, whatever becomes of the process in the middle of saying so."""

from __future__ import annotations

import asyncio

import pytest
import redis

from chatproject.contract import names
from chatproject.generations.announcer import user_watch_key
from chatproject.generations.streaming.hub import Hub


class Listener:
    def on_notice(self, conversation: str | None, generation: str, status: str) -> None: ...


@pytest.mark.needs("redis")
async def test_a_key_of_watchers_stands_with_its_expiry_or_not_at_all(server: redis.Redis, settings) -> None:
    await Hub().join_user("alice", Listener())
    assert 0 < server.pttl(user_watch_key("alice")) <= names.WATCH_MS

    # As a process that is killed between the two commands. Found by the chaos harness, once in 600 kills and faults.
    server.acl_setuser("half", enabled=True, passwords=["+half"], categories=["+@all"], commands=["-pexpire"], keys="*")
    scheme, _, rest = settings.REDIS_URL.partition("://")
    settings.REDIS_URL = f"{scheme}://half:half@{rest}"
    hub = Hub()
    await hub.join_user("bob", Listener())
    await asyncio.sleep(0)
    assert server.keys("watch:*") == [user_watch_key("alice")]
