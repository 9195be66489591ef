"""Run by test_quotas in a process of its own: many threads reserve and settle on one real database.

Prints one JSON object. DATABASE_URL says which database; it is migrated here.
"""

# ruff: noqa: E402 - models can be imported after setup only

from __future__ import annotations

import json
import os
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatproject.settings")

import django

django.setup()

from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from chatproject.accounts import quotas
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import DailyUse, Reservation, UsageRecord, User

THREADS, TRIES, TOKENS, LIMIT = 6, 40, 10, 250


def main() -> None:
    call_command("migrate", verbosity=0)
    alice = User.objects.create_user("alice", tokens_per_day=LIMIT)
    now = timezone.now()
    gate = threading.Barrier(THREADS)
    ids = [uuid.uuid4() for _ in range(TRIES)]

    def reserve(mine: list[uuid.UUID]) -> list[uuid.UUID]:
        gate.wait()
        kept = []
        for id_ in mine:
            try:
                quotas.reserve(user=alice, generation_id=id_, tokens=TOKENS, gpu_seconds=0.1, now=now)
                kept.append(id_)
            except Refused:
                pass
        connection.close()
        return kept

    def settle(all_: list[uuid.UUID]) -> int:
        gate.wait()
        done = sum(
            quotas.settle(
                generation_id=id_, model="m", prompt_tokens=1, completion_tokens=2, gpu_seconds=0.1 / 3, now=now
            )
            for id_ in all_
        )
        connection.close()
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        kept = [id_ for part in pool.map(reserve, [ids[n::THREADS] for n in range(THREADS)]) for id_ in part]
        held = DailyUse.objects.get().tokens_reserved
        # Every thread settles every generation: each must count once.
        settled = sum(pool.map(settle, [kept] * THREADS))
    use = DailyUse.objects.get()
    json.dump(
        {
            "kept": len(kept), "held": held, "settled": settled, "reserved": use.tokens_reserved,
            "gpu_reserved": use.gpu_seconds_reserved, "used": use.tokens_used, "generations": use.generations,
            "reservations": Reservation.objects.count(), "records": UsageRecord.objects.count(),
            "gpu_equal": use.gpu_seconds_used == sum(UsageRecord.objects.values_list("gpu_seconds", flat=True)),
        },
        sys.stdout,
    )  # fmt: skip


if __name__ == "__main__":
    main()
