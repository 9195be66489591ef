"""The fake engine inside a peer's own process: the same loop and runner that our worker runs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence

from chatproject.contract.messages import SamplingParams, Turn
from workers.engine.interfaces import SequenceRequest, StepOutput
from workers.engine.loop import EngineLoop
from workers.fakes import FakeRunner, FakeTokenizer

ROWS = 1200


class PeerEngine:
    """Generates; ``on_text(id, text, is_end)`` is called in the engine's thread, once per token."""

    def __init__(self, on_text: Callable[[str, str, bool], None]) -> None:
        self._on_text = on_text
        self._text = FakeTokenizer()
        runner = FakeRunner(step_ms=float(os.environ["CHAT_FAKE_STEP_MS"]), max_rows=ROWS)
        self._loop = EngineLoop(runner, listener=self, on_fatal=lambda error: os._exit(1), step_tokens=8192)
        self._loop.start()

    def ask(self, text: str, max_tokens: int, id_: str = "") -> str:
        """Begin an answer; return its id."""
        id_ = id_ or uuid.uuid4().hex
        prompt = self._text.encode_chat([Turn(role="user", text=text)], 8192, max_tokens)
        self._loop.submit(
            SequenceRequest(
                sequence_id=id_, prompt=prompt.tokens, text=self._text.text_stream(), user_id=id_,
                sampling=SamplingParams(max_tokens=max_tokens),
            )
        )  # fmt: skip
        return id_

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        """Take a step's tokens."""
        for output in outputs:
            self._on_text(output.sequence_id, output.text, output.finish is not None)
