"""Write a Llama's float32 weights as a GGUF file. Run by the peer's Python: needs gguf and numpy, nothing of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

_OF_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def convert(weights: Path, config: dict[str, Any], target: Path) -> None:
    """Turn ``weights`` (an .npz of the state dict) and transformers' ``config`` into ``target``."""
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")  # tokens go in and come out
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with np.load(weights) as tensors:
        for name in tensors.files:
            tensor = tensors[name].astype(np.float32)
            module = name.removesuffix(".weight")
            count = heads.get(module.rpartition(".")[2])
            if count is not None:
                tensor = _pairs_side_by_side(tensor, count)
            writer.add_tensor(f"{_name(module)}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(module: str) -> str:
    if module in _WHOLE:
        return _WHOLE[module]
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_OF_LAYER[inner]}"


def _pairs_side_by_side(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head: llama.cpp turns neighbours against each other, transformers the two halves."""
    rows, inputs = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, inputs))
