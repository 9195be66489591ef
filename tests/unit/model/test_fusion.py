"""Joined parts give what the parts give, for every architecture; what is unusual stays apart."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.model.tiny import ARCHITECTURES, save_tiny
from workers.model.fusion import fuse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_joined_model_computes_the_same(name, tmp_path):
    apart = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / name, name), dtype=torch.float64).eval()
    joined = copy.deepcopy(apart)
    num_joined = fuse(joined)
    ids = torch.arange(3, 40).unsqueeze(0)
    assert num_joined == (0 if name == "Phi3" else 2 * apart.config.num_hidden_layers)  # Phi3 joins by itself
    with torch.inference_mode():
        torch.testing.assert_close(joined(ids).logits, apart(ids).logits, rtol=1e-9, atol=1e-9)


def test_a_gate_of_another_kind_stays_apart(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path), dtype=torch.float64).eval()
    mlp = model.model.layers[0].mlp
    plain = type(mlp).forward
    mlp.forward = lambda x: plain(mlp, x) * 1.01
    assert fuse(model) == 2 * model.config.num_hidden_layers - 1
    assert hasattr(mlp, "gate_proj")


@pytest.mark.needs("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 96, 300])
def test_the_norm_kernel_is_the_norm(width, dtype):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    from workers.model.kernels.elementwise import rms_norm

    norm = Qwen2RMSNorm(width).to(DEVICE, dtype)
    norm.weight.data.normal_()
    x = torch.randn(2, 5, width, device=DEVICE).to(dtype) * 7
    torch.testing.assert_close(rms_norm(x, norm.weight, norm.variance_epsilon), norm(x), rtol=2e-2, atol=1e-2)


@pytest.mark.needs("triton")
def test_the_gate_kernel_is_silu_times_up():
    from workers.model.kernels.elementwise import silu_gate

    both = torch.randn(3, 2 * 1500, device=DEVICE)
    gate, up = both.chunk(2, -1)
    torch.testing.assert_close(silu_gate(both), torch.nn.functional.silu(gate) * up, rtol=1e-5, atol=1e-5)


@pytest.mark.needs("triton")
@pytest.mark.parametrize("dim", [16, 64, 80])
def test_the_rotation_kernel_rotates_as_transformers_does(dim):
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    from workers.model.kernels.elementwise import rotate

    query = torch.randn(1, 7, 4, dim, device=DEVICE).transpose(1, 2)
    key = torch.randn(1, 7, 2, dim, device=DEVICE).transpose(1, 2)
    angle = torch.rand(1, 7, dim // 2, device=DEVICE).repeat(1, 1, 2)
    wanted = apply_rotary_pos_emb(query, key, angle.cos(), angle.sin())
    for got, right in zip(rotate(query, key, angle.cos(), angle.sin()), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
