"""Turn tokens into text, a piece at a time: whole characters only, each token looked at once.

The pieces joined are what decoding all tokens at once gives, special tokens left out. Byte-level tokenizers and
SentencePiece-like ones with byte tokens are decoded by tables of their own; any other by decoding a short window again.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Protocol

from workers.engine.interfaces import Piece
from workers.text.stops import StopFinder
from workers.text.vocabulary import Vocabulary

REPLACEMENT = "\ufffd"


class Decoder(Protocol):
    """Decodes the tokens of one text."""

    def push(self, token: int) -> str:
        """Take a token and return the text that is certain now."""
        ...

    def flush(self) -> str:
        """Return the rest."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """Return the text of one token in the middle of a text; nothing is remembered."""
        ...


class Detokenizer:
    """The TextStream of one sequence. Owned by the engine thread."""

    def __init__(self, decoder: Decoder, stop: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._stops = StopFinder(stop)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete: a run that resumes after it has nothing to add."""
        return self._stops.is_stopped

    def push(self, token: int) -> Piece:
        """Take the next token and return the text that is now certain."""
        text = self._stops.push(self._decoder.push(token))
        return Piece(text, self._stops.is_stopped)

    def flush(self) -> str:
        """Return the rest at the end of the answer (an incomplete character becomes U+FFFD)."""
        return self._stops.push(self._decoder.flush()) + self._stops.flush()

    def bytes_of(self, token: int) -> bytes:
        """Return the text of one token by itself, for those who look at tokens; part of a character is possible."""
        return self._decoder.bytes_of(token)


def decoder_factory(vocabulary: Vocabulary) -> Callable[[], Decoder]:
    """Return what makes decoders for a vocabulary; the tables are shared by all of them."""
    description = vocabulary.data.get("decoder") or {}
    steps = description.get("decoders", [description])
    kinds = [step.get("type") for step in steps]
    special = {item["id"] for item in vocabulary.data.get("added_tokens", []) if item["special"]}
    if kinds == ["ByteLevel"]:
        table = _ByteTable(vocabulary, special)
        return lambda: _ByteDecoder(table)
    pieces = _piece_steps(steps)
    if pieces is not None:
        tokens = _TokenTable(vocabulary, special)
        return lambda: _PieceDecoder(tokens, pieces)
    return lambda: _WindowDecoder(vocabulary)


class _TokenTable(dict[int, str | None]):
    """Token to its name in the vocabulary; None for what does not show."""

    def __init__(self, vocabulary: Vocabulary, special: set[int]) -> None:
        super().__init__()
        self._vocabulary, self._special = vocabulary, special

    def __missing__(self, token: int) -> str | None:
        # Models have more places than tokens: an id without a token shows as nothing.
        name = None if token in self._special or token < 0 else self._vocabulary.tokenizer.id_to_token(token)
        self[token] = name
        return name


class _ByteTable(dict[int, bytes]):
    """Token to its bytes, in the alphabet of byte-level BPE."""

    def __init__(self, vocabulary: Vocabulary, special: set[int]) -> None:
        super().__init__()
        self._names = _TokenTable(vocabulary, special)
        self._bytes = _byte_alphabet()

    def __missing__(self, token: int) -> bytes:
        name = self._names[token] or ""
        try:
            found = bytes(self._bytes[character] for character in name)
        except KeyError:
            # An added token with a character outside the alphabet stands for itself.
            found = name.encode()
        self[token] = found
        return found


class _ByteDecoder:
    """Byte-level BPE: tokens are bytes, a character may be spread over several."""

    def __init__(self, table: _ByteTable) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._table[token])

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)

    def bytes_of(self, token: int) -> bytes:
        return self._table[token]


class _Pieces:
    """What a SentencePiece-like decoder does to each token and to the text's start."""

    def __init__(self) -> None:
        self.replacements: list[tuple[str, str]] = []
        self.has_bytes = False
        self.strip = ""  # at most ``strip_most`` of it go at the start
        self.strip_most = 0
        self.first_drops = ""  # goes wherever it stands in the first token


def _piece_steps(steps: list[dict[str, Any]]) -> _Pieces | None:
    """Read the steps of a decoder; None when one of them is of another kind."""
    pieces = _Pieces()
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not pieces.has_bytes:
                pieces.replacements.append((old, new))
            case {"type": "ByteFallback"}:
                pieces.has_bytes = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": str(content), "start": int(start), "stop": 0} if len(steps) > 1:
                pieces.strip, pieces.strip_most = content, start
            case {"type": "Metaspace", "replacement": str(mark)} if len(steps) == 1:
                pieces.replacements.append((mark, " "))
                if step.get("prepend_scheme", "always") != "never":
                    pieces.first_drops = mark
            case _:
                return None
    # Where text is stripped before it is fused, every token is: no such model is known, so leave it to the window.
    kinds = [step.get("type") for step in steps]
    if "Strip" in kinds and ("Fuse" not in kinds or kinds.index("Fuse") > kinds.index("Strip")):
        return None
    return pieces


class _PieceDecoder:
    """SentencePiece-like: marks for spaces, and tokens such as <0xE2> for single bytes.

    A run of byte tokens is valid or invalid as a whole, so it is held back until it ends.
    """

    def __init__(self, tokens: _TokenTable, pieces: _Pieces) -> None:
        self._tokens, self._pieces = tokens, pieces
        self._run = bytearray()
        self._is_first = True
        self._strip_left = pieces.strip_most

    def push(self, token: int) -> str:
        name = self._tokens[token]
        if name is None:
            return ""
        if self._is_first and self._pieces.first_drops:
            name = name.replace(self._pieces.first_drops, "")
        self._is_first = False
        piece = self._piece(name)
        if isinstance(piece, int):
            self._run.append(piece)
            return ""
        return self._stripped(self._end_run() + piece)

    def flush(self) -> str:
        return self._stripped(self._end_run())

    def bytes_of(self, token: int) -> bytes:
        piece = self._piece(self._tokens[token] or "")
        return bytes([piece]) if isinstance(piece, int) else piece.encode()

    def _piece(self, name: str) -> str | int:
        """Return the text of a token's name, or the byte that it stands for."""
        for old, new in self._pieces.replacements:
            name = name.replace(old, new)
        if self._pieces.has_bytes and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            try:
                return int(name[3:5], 16)
            except ValueError:
                pass
        return name

    def _end_run(self) -> str:
        if not self._run:
            return ""
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _stripped(self, text: str) -> str:
        while text and self._strip_left:
            if not text.startswith(self._pieces.strip):
                self._strip_left = 0
                break
            text = text[len(self._pieces.strip) :]
            self._strip_left -= 1
        return text


class _WindowDecoder:
    """Any other decoder: decode the tokens since the last certain text, with those before it for context."""

    _PATIENCE = 16  # tokens that may wait for a character to become whole

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        self._waiting.append(token)
        return self._take(is_last=len(self._waiting) > self._PATIENCE)

    def flush(self) -> str:
        return self._take(is_last=True) if self._waiting else ""

    def bytes_of(self, token: int) -> bytes:
        text: str = self._tokenizer.decode([token], skip_special_tokens=True)
        return text.encode()

    def _take(self, *, is_last: bool) -> str:
        before = self._tokenizer.decode(self._context, skip_special_tokens=True)
        whole = self._tokenizer.decode(self._context + self._waiting, skip_special_tokens=True)
        text = whole[len(before) :]
        if not is_last and (not text or text.endswith(REPLACEMENT)):
            return ""
        # With the context of a few tokens nothing but the seam differs from decoding all.
        self._context = (self._context + self._waiting)[-8:] if text else self._context
        self._waiting = []
        return text


def _byte_alphabet() -> dict[str, int]:
    """Return the printable character that stands for each byte in byte-level BPE, the other way round."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update((chr(256 + index), byte) for index, byte in enumerate(others))
    return alphabet
