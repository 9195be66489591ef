"""A real Redis on virtual time: the product's own scripts run there, and everything may go wrong on the way.

Scripts see virtual time and virtual expiry through a few lines put before their source, and what they publish is
handed to this world. The server may be away, lose an answer, forget everything, or go back to what it was (a log file
that lost its last second).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.client import Pipeline
from redis.commands.core import Script

from tests.unit.protocol.world import Killed, World

_NOW, _EXPIRY, _SENT = "virtual:now", "virtual:expiry", "virtual:sent"
_WRITES = ("SET", "DEL", "LPUSH", "RPOP", "SADD", "SREM", "ZADD", "ZREM", "ZREMRANGEBYSCORE",
           "ZINCRBY", "HSET", "HDEL", "HINCRBYFLOAT", "XADD", "PEXPIRE")  # fmt: skip
_REFUSED = "MISCONF Redis is configured to save, and cannot: commands that may modify are disabled"
_SHIM = """
local real, now_ms = redis, tonumber(redis.call('GET', 'virtual:now'))
local refuses, writes = redis.call('EXISTS', 'virtual:refusing') == 1, 'WRITES'
local redis = {call = function(command, ...)
  local args = {...}
  if refuses and string.find(writes, ' ' .. command .. ' ', 1, true) then error({err = 'REFUSED'}) end
  if command == 'TIME' then return {math.floor(now_ms / 1000), (now_ms % 1000) * 1000} end
  if command == 'PEXPIRE' then return 1 end
  if command == 'PUBLISH' then return real.call('RPUSH', 'virtual:sent', args[1], args[2]) end
  if command == 'SET' and args[3] == 'PX' then
    if tonumber(args[4]) < 120000 then real.call('ZADD', 'virtual:expiry', now_ms + args[4], args[1]) end
    return real.call('SET', args[1], args[2])
  end
  return real.call(command, ...)
end}
redis.pcall = redis.call
""".replace("WRITES", f" {' '.join(_WRITES)} ").replace("REFUSED", _REFUSED)
_TICK = """
redis.call('SET', 'virtual:now', ARGV[1])
if ARGV[2] == '1' then redis.call('SET', 'virtual:refusing', '1') else redis.call('DEL', 'virtual:refusing') end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', 'virtual:expiry', '-inf', ARGV[1])) do redis.call('DEL', key) end
redis.call('ZREMRANGEBYSCORE', 'virtual:expiry', '-inf', ARGV[1])
"""


class VirtualRedis(redis.Redis):
    """What the product takes for its client, in every process of the world."""

    world: World
    faults: Faults
    raw: redis.Redis  # past all faults, for those who look from outside
    hear: Callable[[str, str], None]  # takes what scripts publish: channel, message
    cut_at = float("-inf")  # when its connections last ended, as the workers' own client knows it

    @classmethod
    def make(cls, url: str, world: World) -> VirtualRedis:
        client = cls.from_url(url, decode_responses=True)
        client.raw = redis.Redis.from_url(url, decode_responses=True)
        client.world, client.faults = world, Faults()
        client.raw.flushall()
        client.tick = client.raw.script_load(_TICK)
        return client

    def register_script(self, script: Any) -> Script:
        bound = Script(self, _SHIM + script)
        self.raw.script_load(bound.script)
        return bound

    def execute_command(self, *args: Any, **options: Any) -> Any:
        pipe = self.pipeline(transaction=False)
        pipe.execute_command(*args, **options)
        return pipe.execute()[0]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> VirtualPipeline:
        pipe = VirtualPipeline(self.connection_pool, self.response_callbacks, False, shard_hint)
        pipe.owner = self
        return pipe

    # --- what becomes of the server

    def look_for_cut(self) -> None:
        """Do nothing: whoever cuts says so."""

    def snapshot(self) -> list[tuple[str, bytes]]:
        """Return all that it holds."""
        with redis.Redis(connection_pool=redis.ConnectionPool.from_url(self._url)) as client:
            keys = client.keys()
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.dump(key)
            return [(key, value) for key, value in zip(keys, pipe.execute(), strict=True) if value is not None]

    def go_back(self, snapshot: list[tuple[str, bytes]]) -> None:
        """Hold what it held then, and nothing else."""
        self.cut_at = self.world.monotonic()
        with redis.Redis(connection_pool=redis.ConnectionPool.from_url(self._url)) as client:
            pipe = client.pipeline(transaction=False)
            pipe.flushall()
            for key, value in snapshot:
                pipe.restore(key, 0, value)
            pipe.execute()

    @property
    def _url(self) -> str:
        where = self.raw.connection_pool.connection_kwargs
        return f"redis://{where['host']}:{where['port']}/{where.get('db', 0)}"


class Faults:
    """What is wrong with the way to the server, in virtual seconds."""

    def __init__(self) -> None:
        self.away_until = 0.0
        self.refuses_until = 0.0  # commands that may write: its disk or its memory is full
        self.deaf_until = 0.0  # commands arrive; one answer in three does not


class VirtualPipeline(Pipeline):
    """One round trip."""

    owner: VirtualRedis

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        world, faults = self.owner.world, self.owner.faults
        self.scripts.clear()  # they are there
        thread = world.current
        if thread is None:
            return self._now(raise_on_error)
        process = thread.process
        world.sleep(world.random.uniform(0.0003, 0.002))
        if process.calls_to_live is not None and process.calls_to_live > 0:
            process.calls_to_live -= 1
            if process.calls_to_live == 0:
                world.kill(process)
                raise Killed
        if faults.away_until > world.now:
            self.reset()
            world.sleep(min(faults.away_until - world.now, 1.0))
            raise redis.ConnectionError("away")
        answers = self._now(raise_on_error)
        if process.calls_to_live is not None and process.calls_to_live < 0:
            process.calls_to_live += 1
            if process.calls_to_live == 0:
                world.kill(process)
                raise Killed
        if faults.deaf_until > world.now and world.random.random() < 0.33:
            world.sleep(1.0)
            raise redis.TimeoutError("the answer is lost")
        world.sleep(world.random.uniform(0.0003, 0.002))
        return answers

    def _now(self, raise_on_error: bool) -> list[Any]:
        world, refuses = self.owner.world, self.owner.faults.refuses_until > self.owner.world.now
        refused = [refuses and command[0][0] in _WRITES for command in self.command_stack]
        commands = [
            (("ECHO", ""), {}) if is_refused else command
            for command, is_refused in zip(self.command_stack, refused, strict=True)
        ]
        tick = (("EVALSHA", self.owner.tick, 0, world.now_ms, int(refuses)), {})
        self.command_stack = [tick, *commands, (("LRANGE", _SENT, 0, -1), {}), (("DEL", _SENT), {})]
        _, *answers, sent, _ = super().execute(raise_on_error=raise_on_error)
        for channel, message in zip(sent[::2], sent[1::2], strict=True):
            self.owner.hear(channel, message)
        if raise_on_error and any(refused):
            raise redis.ResponseError(_REFUSED)
        return [
            redis.ResponseError(_REFUSED) if is_refused else answer
            for answer, is_refused in zip(answers, refused, strict=True)
        ]
