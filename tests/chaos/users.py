"""Virtual users: they send, lose their sockets, come back to another web process, send twice, stop, open tabs."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from typing import Any

import websockets

from tests.chaos.chats import Chat, OtherStory, Silence, View, Wire
from tests.chaos.cluster import Cluster
from tests.chaos.history import History

GONE = (websockets.WebSocketException, OSError, asyncio.TimeoutError, EOFError)
KNOWN_QUESTIONS = ("Tell me a story.", "What can you do?", "How does this service work?", "What is a planet?")
ANSWER_S = 20.0  # without a word for so long, a client reconnects


class Socket:
    """One connection of one user. Raises one of GONE when it ends."""

    def __init__(self, url: str, key: str, *, answer_s: float = ANSWER_S) -> None:
        self.url = url
        self._answer_s = answer_s
        self._connect = websockets.connect(
            url.replace("http", "ws", 1) + "/ws/chat/", subprotocols=["chat.v1"], open_timeout=10, close_timeout=1,
            additional_headers={"Authorization": f"Bearer {key}"},
        )  # type: ignore[arg-type]  # fmt: skip

    async def __aenter__(self) -> Socket:
        self._socket = await self._connect
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._socket.close()

    async def is_open(self) -> bool:
        """Say whether the other end still answers."""
        try:
            await asyncio.wait_for(await self._socket.ping(), ANSWER_S)
        except GONE:
            return False
        return True

    async def put(self, **frame: Any) -> None:
        await self._socket.send(json.dumps(frame))

    async def get(self) -> Wire:
        async with asyncio.timeout(self._answer_s):
            frame: Wire = json.loads(await self._socket.recv())
            return frame


class User:
    """Asks one question and reads the answer to its end, whatever it takes."""

    def __init__(self, chat: Chat, cluster: Cluster, history: History, seed: int) -> None:
        self._chat, self._cluster, self._history = chat, cluster, history
        self._random = random.Random(f"{seed}/{chat.number}")
        self._key = cluster.users[chat.user]
        self._stops = self._random.random() < 0.12
        self._doubles = self._random.random() < 0.2
        self._asks_again = random.Random(f"{seed}/{chat.number} asks again").random() < 0.5
        self._drops_after = self._random.randint(2, 60) if self._random.random() < 0.3 else None

    async def live(self) -> None:
        """Send, then read until the end; cancelled from outside when the run is over."""
        second: asyncio.Task[None] | None = None
        try:
            while self._chat.view.end is None:
                try:
                    async with Socket(self._random.choice(self._cluster.urls), self._key) as socket:
                        self._chat.sockets += 1
                        is_new = not self._chat.accepted
                        if is_new and not await self._send(socket):
                            return
                        if second is None and self._random.random() < 0.15:
                            self._chat.second = View()
                            second = asyncio.create_task(self._read_along(self._chat.second))
                        await self._read(socket, self._chat.view, is_first=True, must_resume=not is_new)
                        await self._ask_whether_stored(socket)
                except GONE as error:
                    self._note("gone", why=repr(error)[:200])
                    await asyncio.sleep(self._random.uniform(0.1, 0.6))
            if second is not None:
                await second
        finally:
            if second is not None:
                second.cancel()

    async def _send(self, socket: Socket) -> bool:
        message = {
            "type": "send", "id": self._chat.client_id, "conversation": None, "text": self._chat.text,
            "params": {"max_tokens": self._chat.max_tokens, "seed": 1, **self._chat.wishes},
        }  # fmt: skip
        self._chat.asked_at = self._chat.asked_at or self._history.now
        self._note("send")
        await socket.put(**message)
        if self._doubles:
            await socket.put(**message)
        while True:
            frame = await socket.get()
            if frame["type"] == "accepted":
                self._accepted(frame)
                return True
            if frame["type"] == "error":
                self._note("refused", code=frame["code"])
                self._chat.refusals.append(frame["code"])
                if frame["code"] not in ("unavailable", "queue_full", "rate_limited"):
                    return False
                await asyncio.sleep(min(5.0, frame.get("retry_after_s") or 1.0))
                await socket.put(**message)

    def _accepted(self, frame: Wire) -> None:
        self._chat.accepted.append(frame)
        at = self._note("accepted", generation=frame["generation"])
        self._chat.accepted_at = self._chat.accepted_at or at

    async def _read(self, socket: Socket, view: View, *, is_first: bool, must_resume: bool = True) -> None:
        generation = self._chat.generation
        view.has_resumed = must_resume
        awaits_state = asks_again = False
        if must_resume:  # A message that was just sent, perhaps once more, is told from its beginning unasked.
            await socket.put(type="resume", generation=generation, after=view.seq)
            awaits_state = True
        while view.end is None:
            try:
                frame = await socket.get()
            except TimeoutError:
                now = self._history.now
                self._chat.silences.append(Silence(began=now - ANSWER_S, ended=now, url=socket.url))
                raise
            kind = frame["type"]
            if kind == "accepted":
                self._accepted(frame)
                continue
            if kind in ("notice", "queued"):
                continue
            if kind == "error":
                self._note("error", code=frame["code"])
                if frame["code"] == "bad_cursor":
                    view.on_bad_cursor()
                await asyncio.sleep(0.2)
                await socket.put(type="resume", generation=generation, after=view.seq)
                awaits_state = asks_again = True
                continue
            if frame.get("generation") != generation:
                self._chat.problems.append(f"foreign: a frame of {frame.get('generation')}")
                continue
            at = self._note(kind, seq=frame.get("seq"), tab=0 if is_first else 1, text=frame.get("text"))
            if kind == "state":
                awaits_state = False
                view.on_state(frame)
                if frame["status"] in ("done", "failed", "cancelled", "expired") and frame["seq"] < view.seq:
                    raise EOFError("nothing follows")
                continue
            if awaits_state:
                # On their way before it asked again, and told once more behind the state: the page ignores them, too.
                if not asks_again:
                    self._chat.problems.append(f"reordered: {kind} before the state")
                continue
            try:
                view.on_frame(frame, at)
            except OtherStory:
                view.on_bad_cursor()
                raise
            if is_first:
                await self._act(socket, view)

    async def _ask_whether_stored(self, socket: Socket) -> None:
        """What was shown as ended is stored: whoever asks at once is told so."""
        if not self._asks_again:
            return
        generation = self._chat.generation
        await socket.put(type="resume", generation=generation, after=self._chat.view.seq)
        while True:
            frame = await socket.get()
            if frame["type"] == "error":
                status = frame["code"]
            elif frame["type"] == "state" and frame["generation"] == generation:
                status = frame["status"]
            else:
                continue
            if status in ("bad_cursor", "waiting", "running"):
                self._chat.problems.append(f"early: the end was shown, and then it was {status}")
            return

    async def _act(self, socket: Socket, view: View) -> None:
        if self._stops and len(view.deltas_at) > 5 and not self._chat.is_stopped:
            self._chat.is_stopped = True
            self._note("stop")
            await socket.put(type="stop", generation=self._chat.generation)
        if self._drops_after is not None and len(view.deltas_at) >= self._drops_after and view.end is None:
            self._drops_after = None
            raise EOFError("the laptop is closed")

    async def _read_along(self, view: View) -> None:
        while view.end is None:
            try:
                async with Socket(self._random.choice(self._cluster.urls), self._key) as socket:
                    await self._read(socket, view, is_first=False)
            except GONE:
                await asyncio.sleep(self._random.uniform(0.1, 0.6))

    def _note(self, kind: str, **fields: Any) -> float:
        return self._history.note(kind, chat=self._chat.number, **fields)


def make_chats(num: int, users: list[str], seed: int, *, engine: str = "fake") -> list[Chat]:
    """Return the chats of a run; the seed decides all of them. The bundled model is asked what it can tell."""
    choose = random.Random(seed)
    return [
        Chat(
            number=number, client_id=str(uuid.UUID(int=choose.getrandbits(128), version=4)), user=choose.choice(users),
            text=f"question {number} of run {seed}" if engine == "fake" else choose.choice(KNOWN_QUESTIONS),
            max_tokens=choose.randint(60, 400),
            # A part of the messages asks for what the first workers did not know yet.
            wishes={"min_p": 0.02} if number % 4 == 0 else {},
        )
        for number in range(num)
    ]  # fmt: skip
