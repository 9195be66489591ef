"""Seeded defects of claims, runs, the log, the outcome and the lease: each is what a simpler service would do.

Where one thought of the protocol still makes up for another that was taken out, both are out, and it says so.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, Final

Spoil = Callable[[ModuleType], None]

LOG_LATE_S: Final = 0.5  # from the frames that readers see to the log
COMMIT_LATE_S: Final = 1.0  # from the acknowledgement to the commit
CLOCK_AHEAD_S: Final = {"w1": -30, "w2": 900, "w3": 1800}  # by slot; the later ones outlast a run of chaos


def _claim_in_two_steps(module: ModuleType) -> None:
    """Read all that a claim needs, and take the generation a moment later without a second look.

    The later of two has the newer run, and the log refuses the first one's from then on; but it goes on from the
    prefix of its look, so that the frames which the first wrote meanwhile are in the log twice.
    """

    def claim(self: Any, model: str, lane: str, id_: str, slot: str, boot: str, *terms: Any) -> list[Any]:
        names, client = module.names, self.client
        wait, log, lease = names.wait_key(model, lane), names.log_key(id_), names.lease_key(id_)
        score, request, entries = client.zscore(wait, id_), client.get(names.request_key(id_)), client.xrange(log)
        if score is None or request is None:
            return ["gone"]
        if client.exists(lease) or (entries and entries[-1][1]["k"] in ("end", "stored")):
            client.zrem(wait, id_)
            return ["ended"]
        seconds, microseconds = client.time()
        last_run = int(entries[-1][0].partition("-")[0]) if entries else 0
        run = max(seconds * 1000 + microseconds // 1000, last_run + 1)
        time.sleep(random.uniform(0.05, 0.3))
        client.xadd(log, {"k": "start", "by": f"{slot}:{boot}"}, id=f"{run}-0")
        client.pexpire(log, names.LOG_MS)
        client.set(lease, f"{slot}:{boot}:{run}", px=names.LEASE_MS)
        client.zrem(wait, id_)
        rows = [(entry_id, module.flat(fields)) for entry_id, fields in entries]
        is_cancelled, channels = client.exists(names.cancel_key(id_)), client.zrange(names.watch_key(id_), 0, -1)
        return ["claimed", str(run), request, score, is_cancelled, rows, channels]

    def look(self: Any, model: str, costs: Any, *, num_users: int, num_ids: int, **_: Any) -> Any:
        return self.look(model, num_users=num_users, num_ids=num_ids)

    module.Store._claim, module.Store.claim_sole = claim, look


def _fence_by_the_attempt(module: ModuleType) -> None:
    """The run is the attempt of the row, which is 1 again after every death that came behind new tokens.

    It is the only fence: the same number is the same worker, whoever holds the lease and whatever the log ends with,
    and an entry whose place is taken gets the next one.
    """
    for claim in ("claim", "claim_sole"):
        _rewrite(
            module, claim,
            ("local run = next_run(last_run)", "local run = math.max(attempt, last_run)"),
            ("redis.call('XADD', keys.gen, as_id(run, 0), 'k', 'start', 'by', holder)",
             "if run > last_run then redis.call('XADD', keys.gen, as_id(run, 0), 'k', 'start', 'by', holder) end"),
        )  # fmt: skip
    _rewrite(
        module, "renew",
        ("if holder and holder ~= ARGV[1] then",
         "if holder and tonumber(string.match(holder, '%d+$')) > tonumber(ARGV[2]) then"),
    )  # fmt: skip
    _rewrite(
        module, "append",
        ("    return why_not(key, run, expected)\n",
         "    local why = why_not(key, run, expected)\n"
         "    if why == 'newer' or why == 'ended' or (why == 'gone' and expected ~= '') then return why end\n"),
        ("    redis.call('XADD', key, unpack(entry))\n",
         "    local is_done = pcall(redis.call, 'XADD', key, unpack(entry))\n"
         "    if not is_done and entry[3] ~= 'start' then\n"
         "      local _, last_run, seq = tail(key)\n"
         "      redis.call('XADD', key, as_id(last_run, seq + 1), unpack(entry, 2))\n"
         "    end\n"),
    )  # fmt: skip


def _rewrite(module: ModuleType, name: str, *changes: tuple[str, str]) -> None:
    """Change the Lua of one script; a text that is there no more stops the service, so that no defect wears out."""
    script = next(script for script in module.ALL if script.name == name)
    source = script.source
    for old, new in changes:
        if source.count(old) != 1:
            raise LookupError(f"the script {name} has {source.count(old)} times: {old}")
        source = source.replace(old, new)
    spoilt = replace(script, source=source)
    setattr(module, name.upper(), spoilt)
    module.ALL = tuple(spoilt if each is script else each for each in module.ALL)


def _publish_with_the_xadd(module: ModuleType) -> None:
    """Frames go out as they are made, whatever becomes of them in the log, which is written every half second."""
    write = module.Publisher._write

    def write_some_time(self: Any, writing: Any, messages: Any) -> bool:
        write(self, writing, [])
        self._retry_at = max(self._retry_at, time.monotonic() + LOG_LATE_S)
        return False

    def show(self: Any, due: Any) -> None:
        by_channel: dict[str, list[Any]] = {}
        for active in due:
            for frame in active.shown():
                active.shown_at = time.monotonic()
                for channel in active.channels:
                    by_channel.setdefault(channel, []).append(frame)
        for channel, frames in by_channel.items():
            with contextlib.suppress(Exception):  # read from the log instead
                self._channels.send(channel, self._channels.form(module.frames.channel_message(frames)))

    module.Publisher._write, module.Publisher._show = write_some_time, show


def _ack_before_commit(module: ModuleType) -> None:
    """The log says `stored`, so that the worker and the readers let go, and the transaction comes a second later."""
    store = module.store

    def store_later(generation_id: str) -> Any:
        row = module.Generation.objects.filter(id=generation_id).first()
        folded = module.selectors.log_of(generation_id)
        if row is None or row.is_terminal or folded.end is None:
            return store(generation_id)
        if folded.is_stored:
            return None  # acknowledged: nobody need do it again
        module.scripts.stored(generation_id=generation_id, model=row.model, lane=row.lane, end=folded.end)
        time.sleep(COMMIT_LATE_S)
        return store(generation_id)

    module.store = store_later


def _sweeper_trusts_the_ack(module: ModuleType) -> None:
    """What is acknowledged is done: without this the sweeper has it stored within seconds, and nothing is lost."""
    judge = module.Sweeper._judge

    def trust(self: Any, row: Any, *, last: Any, **looks: bool) -> None:
        if not last or last[0][1].get("k") != "stored":
            judge(self, row, last=last, **looks)

    module.Sweeper._judge = trust


class _OwnClock:
    """The contract's names for a worker that reckons the deadline of a lease by a clock of its own.

    The deadline is this clock's time and five seconds; Redis, whose clock is another, holds the lease until then.
    """

    def __init__(self, names: ModuleType) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._names, name)
        if name != "LEASE_MS":
            return value
        # Read late: a spare process is told its slot after its imports.
        return max(1, value + CLOCK_AHEAD_S.get(os.environ.get("CHAT_SLOT", ""), 0) * 1000)


def _lease_on_a_workers_clock(module: ModuleType) -> None:
    """A lease of the slow clock is over when it is written; one of a fast clock outlives its worker by minutes."""
    module.names = _OwnClock(module.names)


def _no_word_of_the_dead(module: ModuleType) -> None:
    """The clock alone ends a lease: the supervisor does not delete those of a process that it saw die."""
    module.mark = lambda redis_url, slot: 0


# Defect: what it spoils, the faults that bring it to light, and the invariants of which one must break.
WORKER_DEFECTS: dict[str, tuple[dict[str, Spoil], tuple[str, ...], tuple[str, ...]]] = {
    "claim_in_two_steps": (
        {"workers.store": _claim_in_two_steps}, ("repeat_tickets",), ("lost", "charged once"),
    ),
    "fence_by_the_attempt": (
        {"chatproject.contract.scripts": _fence_by_the_attempt}, ("stop_worker",), ("lost", "charged once"),
    ),
    "publish_with_the_xadd": (
        {"workers.publisher": _publish_with_the_xadd}, ("kill_worker",), ("replaced without cause",),
    ),
    "ack_before_commit": (
        {"chatproject.generations.records": _ack_before_commit,
         "chatproject.generations.sweeper": _sweeper_trusts_the_ack},
        ("kill_records",), ("lost", "charged once"),
    ),
    "lease_on_a_workers_clock": (
        {"workers.store": _lease_on_a_workers_clock, "chatproject.ops.up.lost_leases": _no_word_of_the_dead},
        ("kill_worker",), ("lost", "left in Redis at rest"),
    ),
}  # fmt: skip
