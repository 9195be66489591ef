"""Tiny random models, and an engine around them, for the tests of the model side."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from chatproject.contract.frames import TokenLogprob
from chatproject.contract.messages import SamplingParams
from workers.engine.engine import Engine
from workers.engine.interfaces import EngineStats, Piece, SequenceRequest, StepOutput
from workers.model.loader import load_model
from workers.model.runner import TorchRunner

# Threads that wait for each other on a busy machine cost more than they compute at this size.
torch.set_num_threads(1)
VOCABULARY = 211
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False,
    "initializer_range": 0.35,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "Qwen3": {"num_key_value_heads": 1},
    "Mistral": {"sliding_window": 20},
    "Gemma": {},
    "Gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    "Gemma3Text": {
        "sliding_window": 18,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "Phi3": {"sliding_window": 30},
    "Olmo2": {},
}


def save_tiny(directory: Path, name: str = "Llama", seed: int = 0, **changes: Any) -> Path:
    """Write a random model of an architecture; its greedy answers are varied, not one token for ever."""
    config_class = getattr(transformers, f"{name}Config")
    fields = SHAPE | ARCHITECTURES.get(name, {}) | changes
    if name == "Phi3":
        fields.pop("head_dim")
    config = config_class(**fields)
    torch.manual_seed(seed)
    model_class = transformers.AutoModelForCausalLM._model_mapping[config_class]
    model = model_class(config).float()
    for key, parameter in model.named_parameters():
        # Norms and biases start at constants, which would hide a loader that forgets them.
        if "norm" in key or key.endswith(".bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


def make_runner(directory: Path, *, dtype: torch.dtype = torch.float64, **options: Any) -> TorchRunner:
    """Load with the product's loader."""
    return TorchRunner(load_model(directory, device="cpu", dtype=dtype), **{"kv_bytes": 64 << 20, **options})


class Silent:
    """A TextStream that tells nothing: these tests look at tokens."""

    def push(self, token: int) -> Piece:
        return Piece(text="")

    def flush(self) -> str:
        return ""


class Collector:
    """A Listener that keeps what the engine says."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, Any] = {}
        self.logprobs: dict[str, list[TokenLogprob]] = {}
        self.stats = EngineStats()

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.sequence_id, []).extend(output.tokens)
            if output.logprobs:
                self.logprobs.setdefault(output.sequence_id, []).extend(output.logprobs)
            if output.finish is not None:
                assert output.sequence_id not in self.ends
                self.ends[output.sequence_id] = output.finish


def request(
    name: str, prompt: Sequence[int], params: SamplingParams, prefix: Sequence[int] = (), priority: int = 3
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name, prompt=tuple(prompt), prefix=tuple(prefix), sampling=params, text=Silent(), priority=priority
    )


def run(runner: TorchRunner, requests: Sequence[SequenceRequest], *, step_tokens: int = 40, late: int = 0) -> Collector:
    """Serve requests in one engine; the last ``late`` of them join while the others run. Return what it said."""
    collector = Collector()
    engine = Engine(runner, listener=collector, step_tokens=step_tokens)
    waiting = list(requests)
    for _ in range(len(requests) - late):
        engine.add(waiting.pop(0))
    for step in range(5000):
        if waiting and step % 3 == 2:
            engine.add(waiting.pop(0))
        if not engine.step() and not waiting:
            break
    collector.stats = engine.stats()
    assert set(collector.ends) == {item.sequence_id for item in requests}
    return collector


def random_prompt(chance: random.Random, least: int = 1, most: int = 70) -> list[int]:
    return [chance.randrange(2, VOCABULARY) for _ in range(chance.randint(least, most))]
