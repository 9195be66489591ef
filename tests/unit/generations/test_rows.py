"""Many who ask for rows at once share queries; each gets what is stored after it asked."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import pytest
from asgiref.sync import sync_to_async
from django import db
from django.db.backends.utils import CursorWrapper

from chatproject.generations import admission
from chatproject.generations.models import Generation
from chatproject.generations.streaming.rows import Rows

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(transaction=True)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SELECTs of generations that are run, in any thread."""
    seen: list[str] = []
    execute = CursorWrapper.execute

    def noted(self: CursorWrapper, sql: str, params: object = None) -> object:
        if sql.startswith("SELECT") and 'FROM "generations_generation"' in sql:
            seen.append(sql)
        return execute(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", noted)
    return seen


@pytest.fixture
def stored(draft: Callable[..., admission.Draft]) -> list[str]:
    """Ids of 40 generations."""
    made = [
        Generation(
            id=uuid.uuid4(), user=draft().user, client_id=str(number), body_sha256="b", origin="chat", model="demo",
            lane="interactive", request={}, accepted_at=db.models.functions.Now(), expires_at=db.models.functions.Now(),
        )
        for number in range(40)
    ]  # fmt: skip
    return [str(row.id) for row in Generation.objects.bulk_create(made)]


async def test_who_asks_during_a_query_shares_the_next_one(stored: list[str], reads: list[str]) -> None:
    rows, unknown = Rows(), str(uuid.uuid4())
    found = await asyncio.gather(*(rows.get(id_) for id_ in [*stored, unknown, stored[0]]))
    assert [str(row.id) for row in found[:40] if row] == stored
    assert found[40] is None
    assert found[41] is found[0]
    assert len(reads) == 1
    first = asyncio.create_task(rows.get(stored[0]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = [asyncio.create_task(rows.get(id_)) for id_ in stored[:20]]
    await asyncio.gather(first, *late)
    assert len(reads) in (2, 3)


async def test_what_is_told_was_stored_after_the_question(stored: list[str]) -> None:
    rows = Rows()
    assert (await rows.get(stored[0])).lane == "interactive"  # type: ignore[union-attr]
    await sync_to_async(Generation.objects.filter(id=stored[0]).update)(lane="batch")
    assert (await rows.get(stored[0])).lane == "batch"  # type: ignore[union-attr]


async def test_one_who_leaves_takes_nobody_along(stored: list[str]) -> None:
    rows = Rows()
    gone, staying = (asyncio.create_task(rows.get(stored[0])) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert str((await staying).id) == stored[0]  # type: ignore[union-attr]


async def test_a_database_that_fails_is_told_to_all_and_asked_again(
    stored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows()

    def broken(self: CursorWrapper, sql: str, params: object = None) -> object:
        raise db.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(CursorWrapper, "execute", broken)
        results = await asyncio.gather(*(rows.get(id_) for id_ in stored[:3]), return_exceptions=True)
    assert [type(result) for result in results] == [db.OperationalError] * 3
    assert str((await rows.get(stored[1])).id) == stored[1]  # type: ignore[union-attr]
