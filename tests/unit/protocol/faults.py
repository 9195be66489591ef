"""What may go wrong, each at a moment that the seed chooses."""

from __future__ import annotations

from tests.unit.protocol.history import SLOTS, Fault, History
from tests.unit.protocol.worker import Worker


def _a_worker(history: History) -> Worker:
    return history.workers[history.random.choice(SLOTS)]


def kill_worker(history: History) -> None:
    worker = _a_worker(history)
    if worker.process.is_alive:
        history.die(worker)


def kill_worker_at_a_step(history: History) -> None:
    """Before or right after one of its next calls of Redis: between any two lines that matter."""
    worker = _a_worker(history)
    worker.process.calls_to_live = history.random.choice((1, -1)) * history.random.randint(1, 12)
    history.killed.add(worker.process.name)
    history._later(2.5, lambda: _start_again(history, worker))


def stop_worker(history: History) -> None:
    """SIGSTOP, SIGCONT: what wakes up may be a zombie."""
    worker = _a_worker(history)
    worker.process.paused_until = history.world.now + history.random.uniform(1, 9)
    history.killed.add(worker.process.name)


def drain_worker(history: History) -> None:
    worker = _a_worker(history)
    if worker.process.is_alive and not worker.is_draining:
        worker.drain()


def kill_records(history: History) -> None:
    if history.records.is_alive:
        history.world.kill(history.records)
        history._later(1.5, history.start_records)


def kill_records_at_a_step(history: History) -> None:
    process = history.records
    if process.is_alive and process.calls_to_live is None:
        process.calls_to_live = history.random.choice((1, -1)) * history.random.randint(1, 12)
        history._later(3.0, lambda: _records_again(history, process))


def redis_away(history: History) -> None:
    history.redis.faults.away_until = history.world.now + history.random.uniform(0.3, 7)


def redis_refuses_writes(history: History) -> None:
    """Its disk or its memory is full: leases run out unseen, and whoever is brought back cannot be queued."""
    history.redis.faults.refuses_until = history.world.now + history.random.uniform(1, 15)


def redis_loses_answers(history: History) -> None:
    """Written, but the writer does not know: what is tried again must not be done twice."""
    history.redis.faults.deaf_until = history.world.now + history.random.uniform(0.3, 2)


def redis_loses_all(history: History) -> None:
    history.lost_data_at.append(history.world.now)
    history.redis.raw.flushall()


def redis_goes_back(history: History) -> None:
    """It restarts from a log file that lacks the last seconds: shorter logs, old leases, old tickets."""
    history.lost_data_at.append(history.world.now)
    history.redis.go_back(history.kept[0])


def lose_tickets(history: History) -> None:
    """Those that lie there, and those of the next moments."""
    history.tickets_lost_until = history.world.now + 1.0
    for key in history.redis.raw.keys("generate.*"):
        history.redis.raw.delete(key)


def lose_outcomes(history: History) -> None:
    history.redis.raw.delete("records")


def repeat_tickets(history: History) -> None:
    raw = history.redis.raw
    for key in ["records", *raw.keys("generate.*")]:
        for text in raw.lrange(key, 0, -1):
            raw.lpush(key, text, text)
    raw.lpush("generate.demo\x06\x163", "-")


def cancel_one(history: History) -> None:
    going = [chat for chat in history.chats if chat.accepted_at is not None and not chat.reader.is_ended]
    if going:
        history.cancel(history.random.choice(going))


def _start_again(history: History, worker: Worker) -> None:
    if history.workers[worker.config.slot] is not worker:
        return  # it died otherwise meanwhile
    history.world.kill(worker.process)
    history.start_worker(worker.config.slot)


def _records_again(history: History, process: object) -> None:
    if history.records is process:
        history.world.kill(history.records)
        history.start_records()


ALL: list[Fault] = [
    kill_worker, kill_worker_at_a_step, stop_worker, drain_worker, kill_records, kill_records_at_a_step, redis_away,
    redis_refuses_writes, redis_loses_answers, redis_loses_all, redis_goes_back, lose_tickets, lose_outcomes,
    repeat_tickets, cancel_one,
]  # fmt: skip
