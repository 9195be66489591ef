"""One generation as a request of the API sees it: accepted, read to its end, and stopped when nobody waits any more.

Both dialects stand on it. It follows the same hub and cursor as the chat socket and belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import redis

from chatproject.accounts.errors import Refused
from chatproject.api import database
from chatproject.api.inbox import Inbox
from chatproject.contract.errors import ContractError, Refusal
from chatproject.contract.frames import End, Frame, TokenLogprob, answer_sha256
from chatproject.generations import selectors, services
from chatproject.generations.streaming.hub import get_hub
from chatproject.generations.streaming.reader import State

log = logging.getLogger(__name__)
PING_S: Final = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next text, and the number of its frame: who comes again asks for what follows it."""

    text: str
    seq: int
    at: int = 0  # characters of the answer before the text
    replaces: bool = False  # the whole text so far: instead of what the reader holds, because its log was lost
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens behind the text, when the request asked for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Nothing came for a while; a word keeps the connection open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What `accept` of a caller gives back: the generation that will be read."""

    generation_id: str
    created: int  # seconds since the epoch
    model: str
    conversation_id: str | None = None


class Answer:
    """A generation and its reader. Call `leave` when done, so that the hub lets go of it."""

    def __init__(
        self, accepted: Accepted, user_id: uuid.UUID, inbox: Inbox, *, stops_when_left: bool, told: str | None = ""
    ) -> None:
        """``told`` is what the reader holds already; None when that is not known."""
        self.accepted = accepted
        self.text = told or ""  # the whole answer so far, where what came before is known
        self.logprobs: list[TokenLogprob] = []  # gone with the log: a late reader gets none
        self.end: End | None = None
        self._user_id = user_id
        self._inbox = inbox
        self._stops_when_left = stops_when_left
        self._is_whole = told is not None
        self._has_log = not told  # from the beginning of the text on

    async def events(self, *, ping_s: float = PING_S) -> AsyncIterator[Delta | Silence | End]:
        """Yield the text as it comes, and the end last. Call once.

        What was yielded is what is stored whenever the end says that the answer is finished. Raises
        Refused(not_found) and django.db.Error when that could not be read, and what the inbox raises.
        """
        while self.end is None:
            try:
                async with asyncio.timeout(ping_s):
                    heard = await self._inbox.take()
            except TimeoutError:
                yield Silence()
                continue
            told: Delta | None = None
            if isinstance(heard, State):
                told = self._told_anew(heard.text, heard.seq) if heard.text is not None else None
            elif heard.end is not None:
                stored = await self._stored_instead(heard.end)
                if stored is not None and (told := self._told_anew(stored, heard.seq - 1)):
                    yield told
                self.end = heard.end
                yield heard.end
                return
            else:
                told = self._told(heard)
            if told is not None:
                yield told

    async def wait(self, *, timeout_s: float | None = None) -> End | None:
        """Return the end; None when it has not come within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                async for _ in self.events():
                    pass
        except TimeoutError:
            return None
        return self.end

    def keep(self) -> None:
        """Let the generation run on when it is left: who asks again with the same key gets it."""
        self._stops_when_left = False

    def leave(self) -> None:
        """Stop reading. Where nobody waits any more, the generation is stopped too. May be called twice."""
        get_hub().detach(self.accepted.generation_id, self._inbox)
        if self._stops_when_left and self.end is None:
            self._stops_when_left = False
            _later(_stop(self._user_id, self.accepted.generation_id))

    def _told(self, frame: Frame) -> Delta | None:
        if self._has_log:
            self.logprobs += frame.logprobs
        if not frame.text:
            return None
        self.text += frame.text
        return Delta(text=frame.text, seq=frame.seq, at=frame.at, logprobs=frame.logprobs)

    def _told_anew(self, text: str, seq: int) -> Delta | None:
        """Take ``text`` for the answer so far, and return what is new of it: all, unless it goes on from what was told.

        Redis lost the log, and perhaps the answer was written anew: a worker that died with it left no memory of it.
        """
        self.logprobs.clear()
        self._has_log = not text
        known, self.text = self.text, text
        if self._is_whole and text.startswith(known):
            rest = text[len(known) :]
            return Delta(text=rest, seq=seq, at=len(known)) if rest else None
        log.warning("the answer of %s changed under its reader", self.accepted.generation_id)
        self._is_whole = True
        return Delta(text=text, seq=seq, replaces=True)

    async def _stored_instead(self, end: End) -> str | None:
        """Return the stored answer when it is not what was told: the hub's cursors count characters alone."""
        if end.code is not None or not end.sha256 or (self._is_whole and answer_sha256(self.text) == end.sha256):
            return None
        id_ = self.accepted.generation_id
        return (await database.run(selectors.owned, user_id=self._user_id, generation_id=id_)).answer


async def ask(
    *,
    user_id: uuid.UUID,
    accept: Callable[[str, str], Accepted],
    stops_when_left: bool,
    inbox: Inbox | None = None,
) -> Answer:
    """Accept a generation and read it. ``accept`` gets the id and the channel for the frames. Raises Refused."""
    hub = get_hub()
    await hub.start()
    generation_id, inbox = str(uuid.uuid4()), inbox or Inbox()
    hub.expect(generation_id, inbox)
    try:
        # Shielded: who goes away in this moment leaves an accepted generation, and that is stopped below.
        accepting = asyncio.ensure_future(database.run(accept, generation_id, hub.channel))
        accepted = await asyncio.shield(accepting)
    except asyncio.CancelledError:
        hub.detach(generation_id, inbox)
        if stops_when_left:
            _later(_stop(user_id, generation_id, after=accepting))
        raise
    except BaseException:
        hub.detach(generation_id, inbox)
        raise
    answer = Answer(accepted, user_id, inbox, stops_when_left=stops_when_left)
    if accepted.generation_id != generation_id:
        # The same request came before: read that one from its beginning, and don't stop what another waits for.
        hub.detach(generation_id, inbox)
        answer.keep()
        await hub.attach(accepted.generation_id, inbox, after=0)
    return answer


async def read(*, user_id: uuid.UUID, accepted: Accepted, after: int, inbox: Inbox) -> Answer:
    """Read a generation that was accepted before. Raises Refused(bad_cursor, not_found)."""
    told = await database.run(_told_until, accepted.generation_id, after) if after else ""
    try:
        await get_hub().attach(accepted.generation_id, inbox, after=after)
    except BaseException:
        get_hub().detach(accepted.generation_id, inbox)
        raise
    return Answer(accepted, user_id, inbox, stops_when_left=False, told=told)


def _told_until(generation_id: str, after: int) -> str | None:
    """Return the text of the frames up to number ``after``; None when the log is gone, or cannot be read now."""
    try:
        frames = selectors.log_of(generation_id).frames
    except (redis.RedisError, ContractError):
        return None
    return "".join(frame.text for frame in frames[:after]) if frames else None


_tasks: set[asyncio.Task[None]] = set()


def _later(work: Any) -> None:
    # The request's own task is being cancelled, so this one stands apart; the set keeps it alive.
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _stop(user_id: uuid.UUID, generation_id: str, *, after: asyncio.Future[Accepted] | None = None) -> None:
    try:
        if after is not None:
            accepted = await after
            if accepted.generation_id != generation_id:
                return
        await database.run(services.stop, user_id=user_id, generation_id=generation_id)
    except Refused as refused:
        if refused.code is not Refusal.NOT_FOUND:
            log.info("generation %s was not accepted: %s", generation_id, refused)
    except Exception:
        log.exception("generation %s was left and could not be stopped", generation_id)
