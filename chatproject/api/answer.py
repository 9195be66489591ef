"""One generation as a request of the API sees it: accepted, read to its end, and stopped when nobody waits any more.

Both dialects stand on it. It follows the same hub and cursor as the chat socket and belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatproject.accounts.errors import Refused
from chatproject.api import database
from chatproject.contract.errors import Refusal
from chatproject.contract.frames import End, Frame, TokenLogprob
from chatproject.generations import services
from chatproject.generations.streaming.hub import get_hub
from chatproject.generations.streaming.reader import Queued, State

log = logging.getLogger(__name__)
PING_S: Final = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next text, and the number of its frame: who comes again asks for what follows it."""

    text: str
    seq: int
    replaces: bool = False  # the whole text so far, because its log is gone: instead of what the reader holds
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


class _Inbox:
    """The hub's reader: puts what it hears into a queue. A whole answer fits the model's context, so it is bounded."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[State | Frame] = asyncio.Queue()

    def on_state(self, state: State) -> None:
        """Take the state: only its text matters, when the log is gone."""
        self.heard.put_nowait(state)

    def on_queued(self, queued: Queued) -> None:
        """Leave out news of the wait: these dialects have no word for it but a ping."""

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Take the next frames."""
        for frame in frames:
            self.heard.put_nowait(frame)


class Answer:
    """A generation and its reader. Call `leave` when done, so that the hub lets go of it."""

    def __init__(
        self, accepted: Accepted, user_id: uuid.UUID, inbox: _Inbox, *, stops_when_left: bool, after: int = 0
    ) -> None:
        self.accepted = accepted
        self.text = ""
        self.logprobs: list[TokenLogprob] = []  # gone with the log: a late reader gets none
        self.end: End | None = None
        self._user_id = user_id
        self._inbox = inbox
        self._stops_when_left = stops_when_left
        self._after = after

    async def events(self, *, ping_s: float = PING_S) -> AsyncIterator[Delta | Silence | End]:
        """Yield the text as it comes, and the end last. Call once."""
        while self.end is None:
            try:
                async with asyncio.timeout(ping_s):
                    heard = await self._inbox.heard.get()
            except TimeoutError:
                yield Silence()
                continue
            logprobs: tuple[TokenLogprob, ...] = ()
            if isinstance(heard, State):
                text, seq = self._rest_of(heard), heard.seq
                replaces = self._after > 0 and not self.text
            elif heard.end is not None:
                self.end = heard.end
                yield heard.end
                return
            else:
                text, seq, replaces, logprobs = heard.text, heard.seq, False, heard.logprobs
            self.text += text
            self.logprobs += logprobs
            if text:
                yield Delta(text=text, seq=seq, replaces=replaces, logprobs=logprobs)

    async def wait(self, *, timeout_s: float | None = None) -> End | None:
        """Return the end; None when it has not come within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                async for _ in self.events():
                    pass
        except TimeoutError:
            return None
        return self.end

    def leave(self) -> None:
        """Stop reading. Where nobody waits any more, the generation is stopped too."""
        get_hub().detach(self.accepted.generation_id, self._inbox)
        if self._stops_when_left and self.end is None:
            _later(_stop(self._user_id, self.accepted.generation_id))

    def _rest_of(self, state: State) -> str:
        if state.text is None:
            return ""
        if not state.text.startswith(self.text):
            # Redis lost the log and its worker died: the answer was written anew. What was sent cannot be taken back.
            log.warning("the answer of %s changed under its reader", self.accepted.generation_id)
            return ""
        return state.text[len(self.text) :]


async def ask(
    *,
    user_id: uuid.UUID,
    accept: Callable[[str, str], Accepted],
    stops_when_left: bool,
) -> Answer:
    """Accept a generation and read it. ``accept`` gets the id and the channel for the frames. Raises Refused."""
    hub = get_hub()
    await hub.start()
    generation_id, inbox = str(uuid.uuid4()), _Inbox()
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
        answer._stops_when_left = False
        await hub.attach(accepted.generation_id, inbox, after=0)
    return answer


async def read(*, user_id: uuid.UUID, accepted: Accepted, after: int) -> Answer:
    """Read a generation that was accepted before. Raises Refused(bad_cursor, not_found)."""
    inbox = _Inbox()
    await get_hub().attach(accepted.generation_id, inbox, after=after)
    return Answer(accepted, user_id, inbox, stops_when_left=False, after=after)


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
