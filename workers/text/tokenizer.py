"""From a conversation to prompt tokens, and from answer tokens to text, for one model.

The template's own pieces may become control tokens; what people wrote never does, whatever it looks like. Both are
encoded together where no control token stands between them, so harmless text gets the tokens the model was trained on.
Knows no torch and no engine beyond the TextStream it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatproject.contract.messages import Turn
from workers.engine.interfaces import TextStream
from workers.errors import RequestRejected
from workers.text.detokenizer import Detokenizer, decoder_factory
from workers.text.template import ChatTemplate
from workers.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """What the model reads before it answers."""

    tokens: tuple[int, ...]
    dropped_turns: int  # cut from the oldest, because they did not fit


class ChatTokenizer:
    """One model's tokenizer and chat template. Immutable, so any thread may use it."""

    def __init__(self, vocabulary: Vocabulary, template: ChatTemplate) -> None:
        self._vocabulary = vocabulary
        self._template = template
        self._make_decoder = decoder_factory(vocabulary)
        self.vocabulary_sha256 = vocabulary.sha256
        self.eos_tokens = self._find_eos()
        self.turn_tokens = self._count_turn_tokens()

    @classmethod
    def load(cls, directory: str | Path) -> ChatTokenizer:
        """Read the tokenizer files of a model directory. Raises ModelLoadError."""
        vocabulary = Vocabulary.load(directory)
        return cls(vocabulary, ChatTemplate.load(directory, vocabulary))

    def encode_chat(self, turns: Sequence[Turn], context_tokens: int, reserve_tokens: int) -> EncodedPrompt:
        """Return the prompt for an answer to ``turns``, at most ``context_tokens - reserve_tokens`` long.

        History that does not fit is cut by whole turns from the oldest; system turns stay, and what is left begins with
        a user's turn. Raises RequestRejected when the last user's turn does not fit by itself.
        """
        limit = context_tokens - reserve_tokens
        tokens = self.encode(turns)
        if len(tokens) <= limit:
            return EncodedPrompt(tokens=tuple(tokens), dropped_turns=0)
        cuts = _cuts(turns)
        fitting: tuple[list[int], int] | None = None
        low, high = 0, len(cuts)
        # More cut means fewer tokens, so the first cut that fits is found by halving.
        while low < high:
            middle = (low + high) // 2
            tokens = self.encode(_cut(turns, cuts[middle]))
            if len(tokens) <= limit:
                fitting, high = (tokens, cuts[middle]), middle
            else:
                low = middle + 1
        if fitting is None:
            shortest = len(self.encode(_cut(turns, cuts[-1]))) if cuts else len(tokens)
            raise RequestRejected(
                f"The message takes {shortest} tokens and there is room for {max(limit, 0)}. Shorten it, or ask for a "
                "shorter answer."
            )
        return EncodedPrompt(tokens=tuple(fitting[0]), dropped_turns=fitting[1])

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Return the prompt for an answer to ``turns``, however long."""
        tokens: list[int] = []
        run: list[str] = []
        for part in self._template.render(turns):
            for piece in self._vocabulary.split_control(part.text) if part.is_template else [part.text]:
                if isinstance(piece, str):
                    run.append(piece)
                    continue
                self._encode_run(run, tokens)
                tokens.append(piece)
        self._encode_run(run, tokens)
        return tokens

    def text_stream(self, stop: tuple[str, ...] = (), prefix: Sequence[int] = ()) -> TextStream:
        """Return a stream for an answer that may have a prefix already: its text is not told again."""
        stream = Detokenizer(self._make_decoder(), stop)
        for token in prefix:
            stream.push(token)
        return stream

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens."""
        stream = self.text_stream()
        return "".join(stream.push(token).text for token in tokens) + stream.flush()

    def _encode_run(self, run: list[str], tokens: list[int]) -> None:
        text = "".join(run)
        run.clear()
        if text:
            tokens.extend(self._vocabulary.encode_plain(text, is_first=not tokens))

    def _find_eos(self) -> frozenset[int]:
        """Return the tokens that end an answer: the configured one, and what the template puts behind an answer."""
        found = set()
        configured = self._vocabulary.special_tokens.get("eos_token")
        if configured is not None and (token := self._vocabulary.tokenizer.token_to_id(configured)) is not None:
            found.add(token)
        for piece in self._vocabulary.split_control(self._template.answer_end()):
            if isinstance(piece, int):
                found.add(piece)
                break
            if piece.strip():
                break
        return frozenset(found)

    def _count_turn_tokens(self) -> int:
        """Return the most template tokens around one turn, with the head of the answer and a default system text."""
        text = "a"
        size = len(self._vocabulary.encode_plain(text, is_first=True))
        conversations = [["user"], ["system", "user"], ["user", "assistant", "user"]]
        counts = [
            len(self.encode([Turn(role=role, text=text) for role in roles])) - size * len(roles)  # type: ignore[arg-type]
            for roles in conversations
        ]
        return max(counts[0], counts[1] - counts[0], counts[2] - counts[0])


def _cuts(turns: Sequence[Turn]) -> list[int]:
    """Return how many of the oldest turns (system turns not counted) may go: a user's turn must be first then."""
    talk = [turn.role for turn in turns if turn.role != "system"]
    return [index for index in range(1, len(talk)) if talk[index] == "user"]


def _cut(turns: Sequence[Turn], number: int) -> list[Turn]:
    kept = []
    for turn in turns:
        if turn.role != "system" and number > 0:
            number -= 1
            continue
        kept.append(turn)
    return kept
