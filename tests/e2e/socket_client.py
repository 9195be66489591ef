"""A client of the chat socket that believes nothing: it checks every promise of the frames as they come."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
import uuid
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import websockets
from websockets.asyncio.client import ClientConnection


@dataclass
class Heard:
    """All frames of one generation, in the order they came."""

    accepted: dict[str, Any]
    frames: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    seq: int = 0
    arrived: list[float] = field(default_factory=list)  # monotonic, of each frame

    @property
    def id(self) -> str:
        generation: str = self.accepted["generation"]
        return generation

    @property
    def end(self) -> dict[str, Any]:
        return self.frames[-1]

    def resumed_at(self) -> float:
        """Return when the first frame after the longest silence came."""
        return max(itertools.pairwise(self.arrived), key=lambda pair: pair[1] - pair[0])[1]

    def take(self, frame: dict[str, Any]) -> bool:
        """Take a frame; True when it was the last."""
        kind = frame["type"]
        if kind == "queued":
            assert self.seq == 0, "news of a wait after the start"
            return False
        assert frame["seq"] == self.seq + 1, f"{frame} after seq {self.seq}"
        assert (kind == "started") == (frame["seq"] == 1), frame
        self.seq = frame["seq"]
        self.frames.append(frame)
        self.arrived.append(time.monotonic())
        if kind == "delta":
            assert frame["at"] == len(self.text), frame
            assert frame["text"]
            self.text += frame["text"]
        elif kind == "finished":
            assert frame["sha256"] == hashlib.sha256(self.text.encode()).hexdigest()
        return kind in ("finished", "failed")


class ChatSocket:
    """One socket, signed in by an API key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.replace("http", "ws", 1) + "/ws/chat/"
        self._key = key
        self.notices: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._socket: ClientConnection = await websockets.connect(
            self._url,
            subprotocols=["chat.v1"],
            additional_headers={"Authorization": f"Bearer {self._key}"},  # type: ignore[list-item]
        )
        assert self._socket.subprotocol == "chat.v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()

    async def put(self, **frame: Any) -> None:
        """Send a frame as it is."""
        await self._socket.send(json.dumps(frame))

    async def get(self, *kinds: str, timeout_s: float = 30) -> dict[str, Any]:
        """Return the next frame of one of ``kinds`` (any when none are named), noting notices on the way."""
        async with asyncio.timeout(timeout_s):
            while True:
                frame: dict[str, Any] = json.loads(await self._socket.recv())
                if frame["type"] == "notice" and "notice" not in kinds:
                    self.notices.append(frame)
                    continue
                if not kinds or frame["type"] in kinds:
                    return frame

    async def send(self, text: str, *, conversation: str | None = None, id_: str = "", **params: Any) -> Heard:
        """Send a message and wait for its acceptance."""
        id_ = id_ or str(uuid.uuid4())
        await self.put(type="send", id=id_, conversation=conversation, text=text, params=params)
        accepted = await self.get("accepted", "error")
        assert accepted["type"] == "accepted", accepted
        assert accepted["id"] == id_
        return Heard(accepted)

    async def hear(self, heard: Heard, *, until: int | None = None, timeout_s: float = 60) -> Heard:
        """Take frames until the end, or until ``until`` deltas have come."""
        async with asyncio.timeout(timeout_s):
            while True:
                frame = await self.get(timeout_s=timeout_s)
                if frame.get("generation") != heard.id:
                    continue
                if heard.take(frame):
                    return heard
                if until is not None and heard.seq > until:
                    return heard

    async def ask(self, text: str, **fields: Any) -> Heard:
        """Send a message and hear the whole answer."""
        return await self.hear(await self.send(text, **fields))
