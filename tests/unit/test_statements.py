"""Statements write and read what Django's own do; remembered values are seen again after a save."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from chatproject import remembered, statements
from chatproject.accounts import quotas
from chatproject.accounts.models import Plan, UsageRecord, User
from chatproject.contract.names import Lane
from chatproject.generations import selectors
from chatproject.generations.models import Generation, ServedModel, Status
from chatproject.statements import pipelined

pytestmark = pytest.mark.django_db

REQUEST = {"turns": [{"text": "Äpfel \U0001f34e '%s' \\ \"x\""}], "none": None, "number": 0.1, "list": []}


def a_generation(user: User, **fields: object) -> Generation:
    now = timezone.now()
    return Generation(
        id=uuid.uuid4(), user=user, client_id=str(uuid.uuid4()), body_sha256="b", thread=None, model="demo", lane="vip",
        request=REQUEST, accepted_at=now, expires_at=now + timedelta(hours=1), **fields,
    )  # fmt: skip


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice", requests_per_minute=3)


def test_insert_writes_what_save_would(alice: User) -> None:
    ours, djangos = a_generation(alice, answer="50 %"), a_generation(alice, answer="50 %")
    statements.insert(ours)
    djangos.save(force_insert=True)
    rows = [Generation.objects.get(pk=each.pk) for each in (ours, djangos)]
    for field in Generation._meta.concrete_fields:
        if field.attname not in ("id", "client_id", "accepted_at", "expires_at"):
            assert getattr(rows[0], field.attname) == getattr(rows[1], field.attname), field.attname
    assert (rows[0].accepted_at, rows[0].expires_at) == (ours.accepted_at, ours.expires_at)
    ours.answer = "no second insert"
    ours.save()  # it knows that it is stored
    assert Generation.objects.count() == 2


def test_get_returns_what_django_would(alice: User) -> None:
    row = a_generation(alice, cancel_requested_at=timezone.now(), tokens_per_s=2.5)
    row.save()
    mine = statements.get(Generation, id=str(row.pk), status=Status.ACCEPTED)
    assert mine is not None
    for field in Generation._meta.concrete_fields:
        assert getattr(mine, field.attname) == getattr(row, field.attname), field.attname
    assert statements.get(User, id=str(alice.pk)) == alice
    assert statements.get(Generation, id=uuid.uuid4()) is None


def test_update_writes_only_rows_that_match_and_counts_them(alice: User) -> None:
    row, other = a_generation(alice), a_generation(alice)
    statements.insert(row, other)
    where = {"id": row.pk, "status": Status.ACCEPTED}
    assert statements.update(Generation, where, status=Status.DONE, answer="Ja %s", ended_at=row.accepted_at) == 1
    assert statements.update(Generation, where, status=Status.FAILED) == 0
    row.refresh_from_db()
    assert (row.status, row.answer, row.ended_at) == (Status.DONE, "Ja %s", row.accepted_at)
    other.refresh_from_db()
    assert other.status == Status.ACCEPTED


def test_keys_that_the_database_counts_up_are_left_to_it(alice: User) -> None:
    ids = [uuid.uuid4(), uuid.uuid4()]
    statements.insert(*(UsageRecord(generation_id=id_, user=alice, username="alice", model="demo") for id_ in ids))
    assert len(set(UsageRecord.objects.filter(generation_id__in=ids).values_list("pk", flat=True))) == 2


def test_what_a_key_forbids_is_djangos_error_and_nothing_is_kept(alice: User) -> None:
    row = a_generation(alice)
    statements.insert(row)
    new, again = a_generation(alice), a_generation(alice)
    again.client_id = row.client_id
    with pytest.raises(IntegrityError), transaction.atomic():
        statements.insert(new, again)
    assert list(Generation.objects.all()) == [row]


def test_plans_and_models_are_read_once_and_again_after_a_save(alice: User) -> None:
    vip = Plan.objects.create(name="few", tokens_per_day=5)
    alice.plan = vip
    alice.save()
    model = ServedModel.objects.create(slug="only-few", name="x")
    model.plans.add(vip)
    alice = User.objects.get(pk=alice.pk)

    def look() -> tuple[int | None, bool]:
        return quotas.limits_of(alice).tokens_per_day, model in selectors.models_for(alice)

    assert look() == (5, True)
    with CaptureQueriesContext(connection) as queries:
        assert look() == (5, True)
    assert len(queries) == 0
    vip.tokens_per_day = 6
    vip.save()
    model.plans.set([Plan.objects.create(name="others")])
    assert look() == (6, False)
    model.delete()
    assert model not in selectors.models_for(alice)


def test_what_others_changed_is_seen_after_a_while(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Plan.objects.get(is_default=True)
    before = quotas.limits_of(alice).tokens_per_day
    Plan.objects.filter(pk=default.pk).update(tokens_per_day=7)  # as another process would: no signal here
    assert quotas.limits_of(alice).tokens_per_day == before
    monkeypatch.setattr(remembered, "FOR_S", 0.0)
    assert quotas.limits_of(alice).tokens_per_day == 7


def test_a_value_that_was_forgotten_while_it_was_read_is_not_kept() -> None:
    values = iter(["old", "new"])

    def read() -> str:
        value = next(values)
        if value == "old":
            mine.forget()  # somebody saves meanwhile
        return value

    mine = remembered.Remembered(read)
    assert mine() == "old"
    assert mine() == "new"


def test_a_value_given_instead_is_written_as_it_is_and_read_back_when_asked(alice: User) -> None:
    row = a_generation(alice)
    statements.insert(row, instead={"request": json.dumps(REQUEST, ensure_ascii=False)})
    with CaptureQueriesContext(connection) as queries:
        assert row.request == REQUEST
        assert row.request == REQUEST
    assert len(queries) == 1
    assert Generation.objects.get(request__number=0.1).request == REQUEST


@pytest.mark.parametrize("given", [str, uuid.UUID], ids=["text", "uuid"])
def test_ids_and_choices_may_come_in_other_types(alice: User, given: type) -> None:
    row = a_generation(alice, status=Status.ACCEPTED)
    row.user_id, row.lane = given(str(alice.pk)), Lane.BATCH
    statements.insert(row)
    assert statements.get(Generation, user_id=given(str(alice.pk)), lane="batch") == row


def test_inserts_of_a_block_are_sent_together(alice: User) -> None:
    rows = [a_generation(alice, answer=f"{number} % 'x'") for number in range(3)]
    with CaptureQueriesContext(connection) as sent, statements.together():
        for row in rows:
            statements.insert(row)
    inserts = [query for query in sent.captured_queries if "INSERT" in query["sql"]]
    assert len(inserts) == (1 if connection.vendor == "postgresql" else 3)
    assert set(Generation.objects.values_list("answer", flat=True)) == {"0 % 'x'", "1 % 'x'", "2 % 'x'"}
    statements.insert(late := a_generation(alice))
    assert Generation.objects.filter(pk=late.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_the_first_statements_of_a_transaction_of_others_are_undone_with_it() -> None:
    def write() -> None:
        with transaction.atomic(), transaction.atomic(savepoint=False):
            pipelined.send([("DELETE FROM accounts_user WHERE username = %s", ["alice"])])
            raise LookupError

    User.objects.create_user("alice")
    if connection.vendor == "postgresql":
        with pytest.raises(LookupError):
            write()
    assert User.objects.filter(username="alice").exists()


def test_of_a_block_that_fails_nothing_is_kept(alice: User) -> None:
    row, again = a_generation(alice), a_generation(alice)
    again.client_id = row.client_id
    with pytest.raises(IntegrityError):
        insert_together(row, again)
    with pytest.raises(LookupError):
        insert_together(row, LookupError())
    assert not Generation.objects.exists()
    statements.insert(row)
    assert Generation.objects.get().pk == row.pk


@pytest.mark.parametrize("asks", [False, True], ids=["only writes", "asks first"])
@pytest.mark.django_db(transaction=True)
def test_a_block_is_a_transaction_also_where_its_commit_goes_with_the_inserts(asks: bool) -> None:
    alice = User.objects.create_user("alice")
    rows = [a_generation(alice) for _ in range(4)]
    heard: list[object] = []

    def note() -> None:
        assert not connection.in_atomic_block
        heard.append(Generation.objects.count())

    def ask() -> None:
        if asks:
            assert statements.get(User, id=alice.pk)

    with CaptureQueriesContext(connection) as sent, statements.together():
        ask()
        statements.insert(rows[0])
        statements.must_be("%s = (SELECT count(*) FROM generations_generation)", [1])
        transaction.on_commit(note)
    if connection.vendor == "postgresql":
        assert sum(query["sql"].endswith("; COMMIT") for query in sent.captured_queries) == asks
        assert sum("INSERT" in query["sql"] for query in sent.captured_queries) == 1
    assert heard == [1]
    again = a_generation(alice)
    again.client_id = rows[0].client_id
    for failing in (again, "1 = 0"):
        with pytest.raises(IntegrityError) as failed:
            insert_together(ask, rows[1], failing)
        assert isinstance(failed.value, statements.Unmet) == isinstance(failing, str)
        assert (Generation.objects.count(), connection.get_autocommit()) == (1, True)

    def within_another() -> None:
        with transaction.atomic():
            insert_together(rows[2])
            assert Generation.objects.count() == 2
            raise LookupError

    with pytest.raises(LookupError):
        within_another()
    assert Generation.objects.count() == 1
    insert_together(rows[3])
    assert Generation.objects.count() == 2


def insert_together(*steps: Generation | Exception | str | Callable[[], object]) -> None:
    with statements.together():
        for step in steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Generation):
                statements.insert(step)
            elif isinstance(step, str):
                statements.must_be(step, [])
            else:
                step()


@pytest.mark.django_db(transaction=True)
def test_what_was_prepared_is_used_again_and_its_loss_loses_nothing() -> None:
    """As behind a pooler, where each transaction may have another connection."""
    alice = User.objects.create_user("alice")
    tries: list[bool] = []

    def write() -> None:
        tries.append(statements.is_together())
        statements.insert(a_generation(alice, answer="50 %% \\ 'x' $1"))

    for loss in ("", "", "DEALLOCATE ALL", "", "forgotten", ""):
        if connection.vendor == "postgresql":
            if loss == "forgotten":
                pipelined._sessions[connection.connection].names.clear()  # it is there, but we do not know
            elif loss:
                statements.execute(loss, [])
        statements.at_once(write)
    assert list(Generation.objects.values_list("answer", flat=True)) == ["50 %% \\ 'x' $1"] * 6
    if connection.vendor == "postgresql":
        assert tries == [True, True, True, False, True, True, False, True]  # each loss costs one message a second try
        statements.at_once(write)
        plans = "SELECT count(*), sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements"
        assert statements.execute_one(f"{plans} WHERE name LIKE 'chat_%%'", []) == (1, 3, 0)


@pytest.mark.django_db(transaction=True)
def test_a_statement_that_cannot_be_prepared_keeps_no_other_from_being_prepared() -> None:
    alice = User.objects.create_user("alice")
    tries: list[bool] = []

    def write() -> None:
        tries.append(statements.is_together())
        statements.insert(a_generation(alice))
        if statements.is_together():
            statements.must_be("1 = 1", [])

    def fail() -> None:
        with statements.together():
            statements.insert(a_generation(alice))
            statements.must_be("no_such_column = 1", [])

    if connection.vendor == "postgresql":
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined] - PostgreSQL's
    with pytest.raises(DatabaseError, match="no_such_column"):
        fail()
    for _ in range(2):
        statements.at_once(write)
    assert tries == [True, True]
    assert Generation.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_server_that_is_lost_on_the_way_is_an_error_and_the_next_block_is_written() -> None:
    if connection.vendor != "postgresql":
        return  # SQLite has no server to lose
    alice = User.objects.create_user("alice")
    rows = [a_generation(alice) for _ in range(2)]

    def insert(row: Generation, demand: str) -> None:
        with statements.together():
            statements.insert(row)
            statements.must_be(demand, [])

    for demand in ("pg_terminate_backend(pg_backend_pid())", "pg_sleep(0) IS NULL"):
        with pytest.raises(DatabaseError):
            insert(rows[0], demand)
        connection.close()  # as `kept_connection` does
    insert(rows[1], "1 = 1")
    assert list(Generation.objects.all()) == [rows[1]]


@pytest.mark.parametrize("asks", [False, True], ids=["only writes", "asks first"])
@pytest.mark.django_db(transaction=True)
def test_what_only_the_commit_finds_is_told_by_its_name(asks: bool) -> None:
    """A key to a row of another table is checked at the commit, which may be part of the one round trip."""
    alice = User.objects.create_user("alice")
    row = a_generation(alice)
    row.user_id = uuid.uuid4()  # of nobody
    before = connection.connection
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        insert_together(lambda: asks and statements.get(User, id=alice.pk), row)
    insert_together(a_generation(alice))
    assert connection.connection is before
    assert Generation.objects.get().user_id == alice.pk


@pytest.mark.django_db(transaction=True)
def test_blocks_may_be_larger_than_what_the_network_holds() -> None:
    alice = User.objects.create_user("alice")
    rows = [a_generation(alice, answer="ä" * 3_000_000) for _ in range(3)]
    insert_together(*rows, "1 = 1")
    assert {len(row.answer) for row in Generation.objects.all()} == {3_000_000}


def test_a_demand_of_a_block_keeps_out_all_of_it(alice: User) -> None:
    change = "UPDATE accounts_user SET first_name = %s WHERE username = %s"
    tries: list[bool] = []

    def write(username: str) -> str:
        tries.append(statements.is_together())
        statements.insert(a_generation(alice))
        if statements.is_together():
            statements.must_write(change, ["50 %", username])
        return "written"

    with pytest.raises(statements.Unmet), statements.together():
        write("nobody")
    assert (Generation.objects.count(), statements.is_together()) == (0, False)
    assert statements.at_once(lambda: write("alice")) == "written"
    assert User.objects.get().first_name == "50 %"
    assert statements.at_once(lambda: write("nobody")) == "written"
    assert tries == [True, True, True, False]
    assert Generation.objects.count() == 2


def test_what_is_asked_for_is_read_before_it_is_too_old_and_nothing_else_is() -> None:
    count = iter(range(100))
    used, unused = (remembered.Remembered(lambda: next(count)) for _ in range(2))
    assert (used(), used.is_due(), unused.is_due()) == (0, False, False)
    at, value = used._found or (0.0, -1)
    used._found = (at - remembered.OLD_S, value)
    assert used.is_due()
    assert remembered.is_any_due()
    remembered.refresh_used()
    assert (used(), used.is_due()) == (1, False)  # read beside, not by the one who asked
    used._found = (at - remembered.FOR_S, 1)
    assert used() == 2
    used._found, used._used_at = (at - remembered.OLD_S, 2), at - remembered.USED_S
    assert not used.is_due()
    used.forget()
    assert not used.is_due()
