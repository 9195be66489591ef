"""Turn a 4-bit GPTQ checkpoint back into a plain Llama, so that it can be scored without any engine.

Reads the first version of the packing: eight 4-bit numbers in an int32, lowest bits first, the stored zero one less.
The worker has its own loader for real use; this one is only for the evaluation, as plain as it can be.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

_SHIFTS = torch.arange(0, 32, 4, dtype=torch.int32)


def load_dense(directory: Path) -> LlamaForCausalLM:
    """The checkpoint in ``directory`` as a float32 model in evaluation mode."""
    config = LlamaConfig.from_pretrained(directory)
    del config.quantization_config
    model = LlamaForCausalLM(config)
    stored = load_file(directory / "model.safetensors")
    state = {name: tensor.float() for name, tensor in stored.items() if name.endswith((".weight", ".bias"))}
    for name in stored:
        if name.endswith(".qweight"):
            layer = name.removesuffix(".qweight")
            state[f"{layer}.weight"] = dequantise(*(stored[f"{layer}.{part}"] for part in _PARTS))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.float().eval()


_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def dequantise(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor) -> Tensor:
    """(in / 8, out) int32, (groups, out / 8) int32, (groups, out), (in,) -> (out, in) float32."""
    numbers = (qweight[:, None, :] >> _SHIFTS[None, :, None]) & 15  # (in / 8, 8, out)
    numbers = numbers.reshape(-1, qweight.shape[1])  # (in, out)
    zeros = ((qzeros[:, :, None] >> _SHIFTS) & 15).reshape(qzeros.shape[0], -1) + 1  # (groups, out)
    group = g_idx.long()
    return ((numbers - zeros[group]).float() * scales.float()[group]).T.contiguous()
