"""The deterministic engine of ``CHAT_ENGINE=fake``: a runner and a tokenizer that need no model.

Token k of an answer depends on the prompt and k only: it is a checksum of all tokens before it. The runner reads them
back from the blocks where they were written, as a model reads its keys and values, so a wrong block gives a wrong
answer. It never ends by itself; an answer runs to ``max_tokens``. Knows no torch, no files and no network.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from chatproject.contract.messages import Turn
from workers.engine.interfaces import BLOCK_TOKENS, Logprob, Piece, Row, RowResult
from workers.errors import RequestRejected

_BYTES_PER_TOKEN: Final = 4
_EOS: Final = 0
_ROLE_TOKENS: Final = {"system": 1, "user": 2, "assistant": 3}
_TURN_END: Final = 4
_FIRST_WORD: Final = 1_000  # answers are made of the tokens from here ...
NUM_WORDS: Final = 4_096
_FIRST_INPUT: Final = 10_000  # ... prompts of these, so that no text can become a role or an end
_NUM_INPUTS: Final = 1 << 20

_ONSETS: Final = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "sh", "th")
_VOWELS: Final = ("a", "e", "i", "o")
_RARE: Final = ("naïve", "café", "Zürich", "précis", "日本", "Привет", "🙂", "👩‍💻", "smörgås", "½")


class FakeRunner:
    """A ModelRunner whose "keys and values" are the tokens themselves, four bytes each, in paged blocks."""

    def __init__(
        self,
        *,
        step_ms: float = 20.0,
        max_rows: int = 64,
        num_blocks: int = 8_192,
        context_tokens: int = 8_192,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.num_blocks = num_blocks
        self.context_tokens = context_tokens
        self.max_rows = max_rows
        self.eos_tokens = frozenset({_EOS})
        self._step_s = step_ms / 1000
        self._sleep = sleep
        self._blocks = [bytearray(BLOCK_TOKENS * _BYTES_PER_TOKEN) for _ in range(num_blocks)]

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        """Take one fixed time for all rows, as a GPU nearly does, and return the next token of each."""
        if self._step_s:
            self._sleep(self._step_s)
        for row in rows:
            self._write(row)
        return [self._result(row) for row in rows]

    def _result(self, row: Row) -> RowResult:
        if row.sampling is None:
            return RowResult()
        token, num_top = self._next(row), row.sampling.logprobs
        if num_top is None:
            return RowResult(token)
        # It finds each token half as likely as the one before it.
        top = tuple(
            (_FIRST_WORD + (token - _FIRST_WORD + k) % NUM_WORDS, -math.log(2) * (k + 1)) for k in range(num_top)
        )
        return RowResult(token=token, logprob=Logprob(token, -math.log(2), top))

    def _write(self, row: Row) -> None:
        for position, token in enumerate(row.tokens, row.start):
            block = self._blocks[row.block_table[position // BLOCK_TOKENS]]
            struct.pack_into("<I", block, position % BLOCK_TOKENS * _BYTES_PER_TOKEN, token)

    def _next(self, row: Row) -> int:
        size = (row.start + len(row.tokens)) * _BYTES_PER_TOKEN
        history = b"".join(map(self._blocks.__getitem__, row.block_table))[:size]
        return _FIRST_WORD + zlib.crc32(history) % NUM_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as tokens, and how many turns were cut to make it fit."""

    tokens: tuple[int, ...]
    dropped_turns: int = 0  # from the oldest; system text is kept


class FakeTokenizer:
    """Gives each word of a prompt a number, and each token of an answer a word."""

    turn_tokens = 2  # around the text of a turn
    vocabulary_sha256 = hashlib.sha256(b"fake").hexdigest()

    def encode_chat(self, turns: Sequence[Turn], context_tokens: int, reserve_tokens: int) -> EncodedPrompt:
        """Return the prompt, without the oldest turns when it would leave less than ``reserve_tokens`` for the answer.

        Raises RequestRejected when the last turn does not fit by itself.
        """
        room = context_tokens - reserve_tokens - 1
        encoded = [(turn.role == "system", self._turn(turn)) for turn in turns]
        total = sum(len(tokens) for _, tokens in encoded)
        kept, dropped = [], 0
        for index, (is_system, tokens) in enumerate(encoded):
            if total > room and not is_system and index < len(encoded) - 1:
                total -= len(tokens)
                dropped += 1
            else:
                kept.append(tokens)
        if total > room:
            raise RequestRejected(f"The message takes {total} tokens; there is room for {room}. Shorten it.")
        tokens = [token for turn_tokens in kept for token in turn_tokens]
        return EncodedPrompt(tokens=(*tokens, _ROLE_TOKENS["assistant"]), dropped_turns=dropped)

    def text_stream(self, stop: tuple[str, ...] = (), prefix: tuple[int, ...] = ()) -> FakeTextStream:
        """Return the text side of one answer that has seen ``prefix`` already."""
        stream = FakeTextStream(stop)
        for token in prefix:
            stream.push(token)
        return stream

    def _turn(self, turn: Turn) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", turn.text)
        ids = [_FIRST_INPUT + zlib.crc32(word.encode("utf-8", "surrogatepass")) % _NUM_INPUTS for word in words]
        return [_ROLE_TOKENS[turn.role], *ids, _TURN_END]


class FakeTextStream:
    """Words, held back while they may be the beginning of a stop string."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> Piece:
        """Take the next token and return the text that is now certain."""
        if not self._stop:
            return Piece(word_of(token))
        if self.is_stopped:
            return Piece(text="", is_stopped=True)
        self._held += word_of(token)
        found = [at for at in (self._held.find(text) for text in self._stop) if at >= 0]
        if found:
            text, self._held, self.is_stopped = self._held[: min(found)], "", True
            return Piece(text=text, is_stopped=True)
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return Piece(text)

    def bytes_of(self, token: int) -> bytes:
        """Return the text of one token by itself."""
        return word_of(token).encode()

    def flush(self) -> str:
        """Return what was held back; it has become no stop string."""
        text, self._held = self._held, ""
        return text


@functools.cache
def word_of(token: int) -> str:
    """Return the text of an answer's token: a lower-case word and what follows it, now and then something rare."""
    index = (token - _FIRST_WORD) % NUM_WORDS
    if index % 64 == 0:
        return _RARE[index // 64 % len(_RARE)] + " "
    syllables = []
    for _ in range(3):
        index, place = divmod(index, len(_ONSETS) * len(_VOWELS))
        syllables.append(_ONSETS[place // len(_VOWELS)] + _VOWELS[place % len(_VOWELS)])
        if not index:
            break
    end = {7: ", ", 23: ". ", 41: ".\n"}.get(token % 59, " ")
    return "".join(syllables) + end


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` begin ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
