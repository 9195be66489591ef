"""Users of the HTTP interfaces: OpenAI's, whole and streamed, and the plain one, waiting and by server-sent events.

When a connection ends they ask again, with the same id of their own, at any web process.
"""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import httpx

from chatproject.contract.errors import Failure
from tests.chaos.chats import Chat, Silence
from tests.chaos.cluster import Cluster
from tests.chaos.history import History
from tests.chaos.person import Person

ENDED_OTHERWISE = frozenset({"cancelled", *(str(code) for code in Failure)})
CONNECT_S = 10.0
READ_S = 25.0  # a stream says something each 12 s
WHOLE_S = 60.0  # for an answer that comes in one piece
ENDS = {"done": "finished", "cancelled": "finished", "failed": "failed", "expired": "failed"}


class _HttpUser(Person):
    """Asks one question until the answer is there."""

    def __init__(self, chat: Chat, cluster: Cluster, history: History, seed: int) -> None:
        super().__init__(chat, cluster, history, seed)
        self._url = ""  # of the last try
        self._shown = ""  # by tries that broke off
        chance = self._chance("leaves")
        self._leaves_after = chance.randint(2, 40) if chance.random() < 0.3 else None

    async def live(self) -> None:
        """Ask, and ask again; cancelled from outside when the run is over."""
        while self._chat.view.end is None and not self._chat.refused:
            self._url = self._random.choice(self._cluster.urls)
            self._chat.sockets += 1
            try:
                async with httpx.AsyncClient(
                    base_url=self._url, headers={"Authorization": f"Bearer {self._key}"},
                    timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
                ) as client:  # fmt: skip
                    await self._ask(client)
            except (httpx.HTTPError, EOFError) as error:
                self._note("gone", why=repr(error)[:200])
                await asyncio.sleep(self._random.uniform(0.1, 0.6))

    @abstractmethod
    async def _ask(self, client: httpx.AsyncClient) -> None:
        """Go on as far as one connection comes. Raises httpx.HTTPError and EOFError."""

    async def _heed(self, code: str, response: httpx.Response) -> None:
        """Take a refusal or an error of the service, and wait as long as it asks to."""
        if response.status_code >= 500 and code == "internal_error":
            self._note("error", code=code)
        elif not self._tries_again(code):
            return
        await asyncio.sleep(min(5.0, float(response.headers.get("retry-after", 1))))

    async def _told_otherwise(self, code: str, client: httpx.AsyncClient) -> None:
        """Take the last word of a stream that is no finish: the answer's end, or that one has to come again."""
        if code not in ENDED_OTHERWISE:
            raise EOFError(code)
        await self._look_up(client)

    async def _look_up(self, client: httpx.AsyncClient) -> None:
        """Have the stored answer told: whoever was told of its end finds it there."""
        answer = await client.get(f"/check-response/{self._chat.generation}")
        if answer.status_code == 202:
            self._chat.problems.append(f"early: an end was told, and then it was {answer.json()['status']}")
        if answer.status_code >= 500 or answer.status_code == 202:
            raise EOFError("not now")
        told = answer.json()
        self._ends(told["response"], {"type": ENDS[told["status"]], "reason": told["reason"]})

    def _piece(self, text: str, **fields: Any) -> None:
        view = self._chat.view
        at = self._note("delta", text=text, **fields)
        view.text += text
        view.started_at = view.started_at or at
        view.deltas_at.append(at)

    def _again(self) -> None:
        """The answer is told from its beginning."""
        view = self._chat.view
        self._shown, view.text = max(self._shown, view.text, key=len), ""

    def _ends(self, text: str | None, end: dict[str, Any]) -> None:
        """Take the end, with the whole text where it came with it."""
        view = self._chat.view
        if text is not None:
            self._again()
            view.text = text
        view.replacements += not view.text.startswith(self._shown)
        view.end = end
        self._note(end["type"], reason=end["reason"])

    async def _lines(self, response: httpx.Response) -> AsyncIterator[tuple[int | None, str]]:
        """Yield id and data of each event. Raises EOFError when the user, or the service, breaks off."""
        id_, heard = None, 0
        try:
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    id_ = int(value)
                elif name == "data":
                    yield id_, value
                    id_, heard = None, heard + 1
                    if value == "[DONE]":
                        return
                    if heard == self._leaves_after:
                        self._leaves_after = None
                        await self._on_leaving()
                        raise EOFError("the laptop is closed")
        except httpx.ReadTimeout:
            now = self._history.now
            self._chat.silences.append(Silence(began=now - READ_S, ended=now, url=self._url))
            await self._on_leaving()
            raise
        raise EOFError("the stream broke off")

    async def _on_leaving(self) -> None:
        """The user is about to hang up."""


class CompletionsUser(_HttpUser):
    """`/v1/chat/completions`: who hangs up stops the answer, and may come back for it with the same key."""

    async def _ask(self, client: httpx.AsyncClient) -> None:
        chat = self._chat
        body = {"messages": [{"role": "user", "content": chat.text}], **self._params()}
        call: dict[str, Any] = {"headers": {"Idempotency-Key": chat.client_id}}
        self._sends()
        if chat.way == "completion":
            try:
                response = await client.post("/v1/chat/completions", json=body, **call, timeout=WHOLE_S)
            except httpx.ReadTimeout:
                await self._on_leaving()
                raise
            if not await self._is_answer(client, response):
                return
            choice = response.json()["choices"][0]
            self._ends(choice["message"]["content"], {"type": "finished", "reason": choice["finish_reason"]})
            return
        async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}, **call) as response:
            if response.status_code != 200:
                await response.aread()
            if await self._is_answer(client, response):
                self._again()
                await self._read(client, response)

    async def _is_answer(self, client: httpx.AsyncClient, response: httpx.Response) -> bool:
        """Take the head of an answer; an error that has an id is the end of one that was accepted."""
        if generation := response.headers.get("x-request-id"):
            self._accepted({"generation": generation}, is_timed=self._chat.way != "completion")
        if response.status_code == 200:
            return True
        if generation:
            await self._look_up(client)
        else:
            await self._heed(response.json()["error"]["code"], response)
        return False

    async def _read(self, client: httpx.AsyncClient, response: httpx.Response) -> None:
        end: dict[str, Any] | None = None
        async for _, data in self._lines(response):
            if data == "[DONE]":
                break
            told = json.loads(data)
            if "error" in told:
                await self._told_otherwise(told["error"]["code"], client)
                return
            choice = told["choices"][0]
            if end is not None:
                self._chat.problems.append("doubled: a piece after the end")
            if text := choice["delta"].get("content"):
                self._piece(text)
            if choice["finish_reason"]:
                end = {"type": "finished", "reason": choice["finish_reason"]}
        if end is None:
            self._chat.problems.append("gap: [DONE] without an end")
            raise EOFError("no end")
        self._ends(None, end)

    async def _on_leaving(self) -> None:
        self._chat.is_stopped = True
        self._note("stop")


class WaitingUser(_HttpUser):
    """`POST /chat`: the answer comes in one piece."""

    async def _ask(self, client: httpx.AsyncClient) -> None:
        self._sends()
        response = await client.post("/chat", json=_message(self), timeout=WHOLE_S)
        told = response.json()
        if told.get("error") in ENDED_OTHERWISE:  # told without an id, which the same message brings
            told = (await client.post("/async-chat", json=_message(self))).json()
        if "correlation_id" in told:
            accepted = {"generation": told["correlation_id"], "conversation": told["conversation_id"]}
            self._accepted(accepted, is_timed=False)
        if told.get("status") == "accepted":
            await self._look_up(client)
        elif response.status_code == 200:
            self._ends(told["response"], {"type": "finished", "reason": told["reason"]})
        elif response.status_code == 202:
            raise EOFError("it takes its time")  # and the same message again waits for the same answer
        else:
            await self._heed(told["error"], response)


class EventsUser(_HttpUser):
    """`POST /stream-chat` and `GET /stream/<id>`, from what follows the last event when the connection was cut."""

    async def _ask(self, client: httpx.AsyncClient) -> None:
        chat = self._chat
        if not chat.accepted:
            self._sends()
            response = await client.post("/stream-chat", json=_message(self))
            told = response.json()
            if response.status_code != 202:
                await self._heed(told["error"], response)
                return
            self._accepted({"generation": told["correlation_id"], "conversation": told["conversation_id"]})
        headers = {"Last-Event-ID": str(chat.view.seq)} if chat.view.seq else {}
        async with client.stream("GET", f"/stream/{chat.generation}", headers=headers) as response:
            if response.status_code == 200:
                await self._read(client, response)
                return
            await response.aread()
            code = response.json()["error"]
            self._note("error", code=code)
            if code == "bad_cursor":  # the log is behind what was shown, or cut otherwise
                chat.view.seq = 0
                self._again()
            elif response.status_code < 500:
                chat.problems.append(f"gap: {code} for an answer of one's own")
            raise EOFError(code)

    async def _read(self, client: httpx.AsyncClient, response: httpx.Response) -> None:
        view, chat = self._chat.view, self._chat
        async for seq, data in self._lines(response):
            if data == "[DONE]":
                chat.problems.append("gap: [DONE] without an end")
                raise EOFError("no end")
            told = json.loads(data)
            if told["done"] and "error" in told:
                await self._told_otherwise(told["error"], client)
                return
            if told["done"]:
                self._ends(None, {"type": "finished", "reason": told["reason"]})
                return
            if seq is None or (seq <= view.seq and not told.get("replace")):
                chat.problems.append(f"doubled: event {seq} after {view.seq}")
            if told.get("replace"):
                self._again()
            self._piece(told["token"], seq=seq)
            view.seq = seq or view.seq


def _message(user: _HttpUser) -> dict[str, Any]:
    before = user._before()
    return {
        "message": user._chat.text, "id": user._chat.client_id, "params": user._params(),
        "conversation_id": before["conversation"] if before else None,
    }  # fmt: skip
