"""Random-weight models of a stated shape, for benchmarks. Valid for speed and memory, not for answers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.model.gptq import GPTQTensors, pack
from workers.model.loader import Backend, LoadedModel, quantised_layer

VOCABULARY = 2048
GROUP = 64


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


def quantise(model: LlamaForCausalLM, backend: Backend) -> None:
    """Round the layers of ``model`` to 4 bits, the nearest value, in groups of 64, and compute them by ``backend``."""
    for parent in list(model.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear):
                layer = quantised_layer(_rounded(linear.weight.data), torch.float32, torch.device("cpu"), backend)
                setattr(parent, name, layer)


def _rounded(weight: torch.Tensor) -> GPTQTensors:
    outputs, inputs = weight.shape
    groups = weight.t().reshape(inputs // GROUP, GROUP, outputs)
    scales = groups.abs().amax(1) / 7  # (I / group, O)
    stored = (groups / scales.unsqueeze(1)).round().clamp(-8, 7).long().view(inputs, outputs) + 8
    return GPTQTensors.read(
        qweight=pack(stored, 4, dim=0), qzeros=pack(torch.full(scales.shape, 8), 4, dim=1), scales=scales, g_idx=None,
        bias=None, in_features=inputs, out_features=outputs, bits=4, group_size=GROUP, is_v1=False,
    )  # fmt: skip


def as_loaded(model: LlamaForCausalLM, *, is_prepacked: bool = True) -> LoadedModel:
    """Change ``model`` as the worker's loader does: our attention, joined what can be joined, and packed."""
    from workers.model.attention import ATTENTION_NAME
    from workers.model.fusion import fuse
    from workers.model.prepacked import prepack_all

    fuse(model)
    if is_prepacked:
        prepack_all(model)

    model.config._attn_implementation = ATTENTION_NAME
    return LoadedModel(
        model=model, config=model.config, directory=Path("."), device=torch.device("cpu"), dtype=torch.float32,
        eos_tokens=frozenset(), num_quantised=0,
    )  # fmt: skip
