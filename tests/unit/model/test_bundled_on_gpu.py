"""The bundled model through the whole worker side on a GPU says what it says on a CPU."""

from __future__ import annotations

import pytest
import torch

from chatproject.contract.messages import SamplingParams, Turn
from tests.unit.model.tiny import request, run
from workers.config import BUNDLED_MODEL
from workers.model.loader import load_model
from workers.model.runner import TorchRunner
from workers.text.tokenizer import ChatTokenizer

pytestmark = pytest.mark.needs("cuda")
QUESTIONS = ("Tell me about Mars", "What is the capital of France?", "Who are you?", "How do I stop it?", "Hello")


def _answers(device: str, dtype: torch.dtype) -> dict[str, str]:
    loaded = load_model(BUNDLED_MODEL, device, dtype, backend="auto" if device == "cuda" else "dense")
    if device == "cuda":
        from workers.model.gptq_triton import TritonInt4Linear

        assert any(isinstance(module, TritonInt4Linear) for module in loaded.model.modules())
    text = ChatTokenizer.load(loaded.directory)
    runner = TorchRunner(loaded, max_rows=8, kv_bytes=1 << 28, eos_tokens=loaded.eos_tokens | text.eos_tokens)
    greedy = SamplingParams(temperature=0.0, max_tokens=60)
    requests = [
        request(question, text.encode_chat([Turn(role="user", text=question)], 512, 100).tokens, greedy)
        for question in QUESTIONS
    ]
    return {name: text.decode(tokens) for name, tokens in run(runner, requests, late=2).tokens.items()}


def test_the_gpu_answers_as_the_cpu_does():
    assert _answers("cuda", torch.float32) == _answers("cpu", torch.float32)


def test_rounding_to_bfloat16_changes_few_answers():
    exact, rounded = _answers("cpu", torch.float32), _answers("cuda", torch.bfloat16)
    assert sum(exact[name] == rounded[name] for name in QUESTIONS) >= 4, (exact, rounded)
