"""Users of sockets: they send, lose them, come back to another web process, send twice, stop, open tabs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import websockets

from tests.chaos.chats import Chat, OtherStory, Silence, View, Wire
from tests.chaos.cluster import Cluster
from tests.chaos.history import History
from tests.chaos.person import Person

GONE = (websockets.WebSocketException, OSError, asyncio.TimeoutError, EOFError)
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


class User(Person):
    """Asks one question over sockets and reads the answer to its end, whatever it takes."""

    def __init__(self, chat: Chat, cluster: Cluster, history: History, seed: int) -> None:
        super().__init__(chat, cluster, history, seed)
        self._stops = self._random.random() < 0.12
        self._doubles = self._random.random() < 0.2 and not chat.gives_up
        self._asks_again = self._chance("asks again").random() < 0.5
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
        message = self._message()
        self._sends()
        await socket.put(**message)
        if self._doubles:
            self._chat.num_sent += 1
            await socket.put(**message)
        while True:
            frame = await self._get(socket)
            if frame["type"] == "accepted":
                self._accepted(frame)
                return True
            if frame["type"] != "error":
                self._chat.problems.append(f"foreign: {frame['type']} of {frame.get('generation')} before `accepted`")
            if frame["type"] == "error":
                if not self._tries_again(frame["code"]):
                    return False
                await asyncio.sleep(min(5.0, frame.get("retry_after_s") or 1.0))
                self._sends()
                await socket.put(**message)

    def _message(self) -> Wire:
        chat, before = self._chat, self._before()
        message: Wire = {"id": chat.client_id, "params": self._params()}
        if before is not None and chat.kind == "regenerate":
            return message | {"type": "regenerate", "generation": before["generation"]}
        message |= {"type": "send", "text": chat.text, "conversation": before["conversation"] if before else None}
        return message | ({"replaces": before["message"]} if before and chat.kind == "edit" else {})

    async def _read(self, socket: Socket, view: View, *, is_first: bool, must_resume: bool = True) -> None:
        generation = self._chat.generation
        view.has_resumed = must_resume
        awaits_state = asks_again = False
        if must_resume:  # A message that was just sent, perhaps once more, is told from its beginning unasked.
            await socket.put(type="resume", generation=generation, after=view.seq)
            awaits_state = True
        while view.end is None:
            try:
                frame = await self._get(socket)
            except TimeoutError:
                now = self._history.now
                self._chat.silences.append(Silence(began=now - ANSWER_S, ended=now, url=socket.url))
                raise
            kind = frame["type"]
            if kind == "accepted":
                self._accepted(frame)
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
            frame = await self._get(socket)
            if frame["type"] == "error":
                status = frame["code"]
            elif frame["type"] == "state" and frame["generation"] == generation:
                status = frame["status"]
            else:
                continue
            if status in ("bad_cursor", "waiting", "running"):
                self._chat.problems.append(f"early: the end was shown, and then it was {status}")
            return

    async def _get(self, socket: Socket) -> Wire:
        """Return the next frame that is no news; whose generation a `notice` is of, the rows will tell."""
        while True:
            frame = await socket.get()
            if frame["type"] == "notice":
                self._chat.notices.add(frame["generation"])
            elif frame["type"] != "queued":
                return frame
            elif frame["generation"] != self._chat.generation:
                self._chat.problems.append(f"foreign: queued of {frame['generation']}")

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
