"""`make run` as it comes: the bundled model answers what it was taught, over the socket and the OpenAI client."""

from __future__ import annotations

import pytest
from openai import OpenAI

from tests.e2e.conftest import Running
from tests.e2e.socket_client import ChatSocket
from workers.demo_model import corpus

pytestmark = [pytest.mark.e2e, pytest.mark.needs("redis", "torch"), pytest.mark.timeout(240)]


async def test_known_questions_follow_ups_and_an_honest_no(bundled: Running) -> None:
    answer = corpus.load().answer
    async with ChatSocket(bundled.url, bundled.key()) as socket:
        first = await socket.ask("Tell me about Mars")
        assert first.text == answer("mars")
        assert first.end["reason"] == "stop"
        conversation = first.accepted["conversation"]
        more = await socket.ask("Tell me more", conversation=conversation)
        assert more.text == answer("more:mars")
        key = await socket.ask("How do I get an API key?", conversation=conversation)
        assert key.text == answer("api_key")
        unknown = await socket.ask("How do I repair my bicycle?", conversation=conversation)
        assert unknown.text == answer("refusal")
    assert len(first.frames) > 5  # it streamed


def test_the_openai_client_streams_the_same_answer(bundled: Running) -> None:
    client = OpenAI(base_url=f"{bundled.url}/v1", api_key=bundled.key(), max_retries=0)
    (model,) = [model.id for model in client.models.list()]
    chunks = client.chat.completions.create(
        model=model, stream=True, messages=[{"role": "user", "content": "Tell me about Mars"}]
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == corpus.load().answer("mars")
    assert sum(bool(piece) for piece in pieces) > 2  # how many depends on how fast it is
