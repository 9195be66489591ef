"""One socket that asks, and keeps what it saw; comes back when it is cut."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator

from tests.chaos.chats import View, Wire
from tests.chaos.cluster import Cluster
from tests.chaos.users import GONE, Socket

PATIENCE_S = 60.0  # Redis may be away for half of it
NUMBERED = ("started", "delta", "finished", "failed")


class Client:
    """Asks one question over one socket at a time. Times are of `time.monotonic`."""

    def __init__(self, cluster: Cluster, *, user: int = 0, web: int = 0) -> None:
        self.cluster, self.web = cluster, web
        self.key = list(cluster.users.values())[user % len(cluster.users)]
        self.generation = ""
        self.view = View()
        self.errors: Counter[str] = Counter()
        self.closes: list[float] = []
        self.resumed_at: list[float] = []

    def connect(self) -> Socket:
        return Socket(self.cluster.urls[self.web], self.key, answer_s=PATIENCE_S)

    async def ask(self, socket: Socket, text: str, max_tokens: int) -> Wire:
        """Send; return `accepted` or `error`."""
        id_ = str(uuid.uuid4())
        params = {"max_tokens": max_tokens, "seed": 1}
        await socket.put(type="send", id=id_, conversation=None, text=text, params=params)
        while True:
            frame = await socket.get()
            if frame["type"] in ("accepted", "error") and frame.get("id") == id_:
                self.generation = frame.get("generation", "")
                return frame

    async def frames(self, socket: Socket) -> AsyncIterator[Wire]:
        """Take every frame of the generation into the view, until its end."""
        while self.view.end is None:
            frame = await socket.get()
            if frame.get("generation") != self.generation:
                continue
            if frame["type"] == "error":
                self.errors[frame["code"]] += 1
                await asyncio.sleep(0.2)
                await self.resume(socket)
            elif frame["type"] == "state":
                self.resumed_at.append(time.monotonic())
                self.view.on_state(frame)
            elif frame["type"] in NUMBERED:
                self.view.on_frame(frame, time.monotonic())
            yield frame

    async def resume(self, socket: Socket) -> None:
        """Ask for what follows the last frame seen."""
        self.view.has_resumed = True
        await socket.put(type="resume", generation=self.generation, after=self.view.seq)

    async def read(self, socket: Socket) -> None:
        """Read to the end over this socket."""
        async for _ in self.frames(socket):
            pass

    async def read_whatever_happens(self, socket: Socket) -> None:
        """Read to the end over an open socket, and close it; when it is cut, go on at the next web process."""
        try:
            await self.read(socket)
        except GONE:
            self.closes.append(time.monotonic())
        await socket.__aexit__()
        while self.view.end is None:
            await asyncio.sleep(random.uniform(0.1, 0.5))
            self.web = (self.web + 1) % len(self.cluster.urls)
            try:
                async with self.connect() as again:
                    await self.resume(again)
                    await self.read(again)
            except GONE as error:
                self.errors[type(error).__name__] += 1


async def begin(client: Client, text: str, max_tokens: int) -> Socket:
    """Connect, ask and wait for the first piece; return the open socket."""
    socket = client.connect()
    await socket.__aenter__()
    accepted = await client.ask(socket, text, max_tokens)
    assert accepted["type"] == "accepted", accepted
    async for frame in client.frames(socket):
        if frame["type"] == "delta":
            break
    return socket
