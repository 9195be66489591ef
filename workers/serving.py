"""What a worker serves: a model runner and its text side, real or fake, behind one shape.

The only place that chooses between them; torch is imported here and not before, so the fake needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chatproject.contract.messages import Turn
from workers.config import Config
from workers.engine.interfaces import ModelRunner, TextStream


class Prompt(Protocol):
    """An encoded conversation."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt tokens."""

    @property
    def dropped_turns(self) -> int:
        """Turns cut from the oldest because they did not fit."""


class Text(Protocol):
    """Turns conversations into tokens and tokens into text."""

    @property
    def turn_tokens(self) -> int:
        """Template tokens around one turn, the most of any role."""

    @property
    def vocabulary_sha256(self) -> str:
        """Digest of the vocabulary: a prefix may only be resumed by the same one."""

    def encode_chat(self, turns: Sequence[Turn], context_tokens: int, reserve_tokens: int) -> Prompt:
        """Return the prompt; raises RequestRejected when the last turn alone does not fit."""

    def text_stream(self, stop: tuple[str, ...], prefix: tuple[int, ...]) -> TextStream:
        """Return the text side of one answer that has seen ``prefix``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A loaded model."""

    runner: ModelRunner
    text: Text


def load(config: Config) -> Serving:
    """Load what the configuration names. Raises ModelLoadError with a sentence that says what to do."""
    if config.engine == "fake":
        from workers.fakes import FakeRunner, FakeTokenizer

        fake = FakeRunner(step_ms=config.fake_step_ms, max_rows=max(64, config.slots))
        return Serving(runner=fake, text=FakeTokenizer())
    from workers.model.loader import load_model
    from workers.model.runner import TorchRunner
    from workers.text.tokenizer import ChatTokenizer

    loaded = load_model(config.model, config.device, backend=config.gptq_backend)
    text = ChatTokenizer.load(loaded.directory)
    runner = TorchRunner(loaded, max_rows=config.slots, eos_tokens=loaded.eos_tokens | text.eos_tokens)
    return Serving(runner=runner, text=text)
