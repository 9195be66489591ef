"""Two tabs come back in the same moment: each is told, whatever the other does. Found by the chaos harness."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from chatproject.contract.frames import Frame, Log, channel_message
from chatproject.generations.streaming.hub import Hub
from chatproject.generations.streaming.rows import Rows
from chatproject.generations.streaming.truth import Truth
from chatproject.generations.streaming.watches import Watches

STARTED = Frame(generation_id="g", run=7, seq=1, kind="started")
DELTA = Frame(generation_id="g", run=7, seq=2, kind="delta", text="Mars")
LOG = Log(run=7, seq=1, frames=(STARTED,))


class Tab:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_frames(self, frames: Sequence[Frame]) -> None:
        self.seen += [frame.seq for frame in frames]

    def on_state(self, state: Any) -> None: ...

    def on_queued(self, queued: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub whose database takes a moment, and whose log holds `started`."""

    async def row(self: Rows, generation_id: str) -> Any:
        await asyncio.sleep(0)
        return SimpleNamespace(thread=None, is_terminal=False)

    async def log(self: Truth, generation_id: str) -> Log:
        return LOG

    async def nothing(self: object, *_: Any) -> None: ...

    monkeypatch.setattr(Rows, "get", row)
    monkeypatch.setattr(Truth, "log", log)
    monkeypatch.setattr(Hub, "start", nothing)
    monkeypatch.setattr(Watches, "watch_late", nothing)
    return Hub()


async def test_a_tab_that_resumes_is_not_forgotten_when_another_comes(hub: Hub) -> None:
    first, second = Tab(), Tab()
    coming = asyncio.ensure_future(hub.attach("g", first, after=0))
    await asyncio.sleep(0)
    hub.detach("g", second)  # as the socket does before each resume
    await hub.attach("g", second, after=0)
    await coming
    hub._take(channel_message([DELTA]))
    assert (first.seen, second.seen) == ([1, 2], [1, 2])


async def test_nothing_is_kept_of_those_who_have_gone(hub: Hub) -> None:
    tab = Tab()
    await hub.attach("g", tab, after=0)
    hub.detach("g", tab)
    assert not hub._streams
