"""Run by test_known_users in a process of its own: threads send for users with narrow limits, on one real database.

Prints one JSON object: by limit, how many messages were accepted. DATABASE_URL says which database; it is migrated
here.
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

from chatproject.accounts.models import User
from chatproject.chat import services
from chatproject.chat.protocol import Send
from chatproject.generations import dispatch
from chatproject.generations.models import Generation, ServedModel

THREADS, TRIES, LIMIT = 6, 4, 7


def main() -> None:
    call_command("migrate", verbosity=0)
    dispatch.announce = lambda request, text, then: None  # type: ignore[assignment] - no Redis here
    ServedModel.objects.get_or_create(slug="demo", defaults={"name": "Demo", "is_default": True})
    gate = threading.Barrier(THREADS)

    def send(user: User) -> int:
        accepted = 0
        for _ in range(TRIES):
            gate.wait()
            frame, generation_id = Send(id=str(uuid.uuid4()), text="Tell me about Mars"), str(uuid.uuid4())
            accepted += services.try_send(user=user, frame=frame, generation_id=generation_id, watcher=None) is not None
        connection.close()
        return accepted

    found = {}
    for name in ("concurrent", "requests_per_minute"):
        user = User.objects.create_user(name, **{"concurrent": 1000, "requests_per_minute": 1000} | {name: LIMIT})
        with ThreadPoolExecutor(THREADS) as pool:
            found[name] = [sum(pool.map(send, [user] * THREADS)), Generation.objects.filter(user=user).count()]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
