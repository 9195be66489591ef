"""Streams of the API whose answer is long in coming, over real processes without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.stack import Stack, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.django_db(databases=[])]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    with running(Path(tmp_path_factory.mktemp("stack")), redis_url, with_worker=False) as stack:
        yield stack


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.origin, headers={"X-API-Key": stack.cast["alice"].key}, timeout=30) as http:
        yield http


def test_a_stream_answers_before_there_is_anything_to_tell(http: httpx.Client) -> None:
    asked = http.post("/stream-chat", json={"message": "Is anybody there?"}).json()
    with http.stream("GET", asked["stream_endpoint"], timeout=8) as stream:
        assert stream.status_code == 200
