"""Random-weight models of a stated shape, for benchmarks. Valid for speed and memory, not for answers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.model.loader import LoadedModel

VOCABULARY = 2048


def random_llama(*, layers: int, width: int) -> LlamaForCausalLM:
    """Return a float32 Llama with ``width`` / 64 heads and seeded non-zero weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 8 // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=1024,
        initializer_range=0.06, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    return model


def as_loaded(model: LlamaForCausalLM) -> LoadedModel:
    """Return the same weights as the worker's runner takes them, behind our attention."""
    from workers.model.attention import ATTENTION_NAME

    model.config._attn_implementation = ATTENTION_NAME
    return LoadedModel(
        model=model, config=model.config, directory=Path("."), device=torch.device("cpu"), dtype=torch.float32,
        eos_tokens=frozenset(), num_quantised=0,
    )  # fmt: skip
