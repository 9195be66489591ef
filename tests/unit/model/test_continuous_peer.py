"""The peer of the GPU benchmark, continuous batching of transformers with our kernels, answers as `generate` does.

Only an exact peer is worth timing. Interpreted where there is no GPU.
"""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers

from tests.unit.model import tiny

pytestmark = pytest.mark.needs("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = (1, 5, 16, 17, 45, 33)  # of prompts
STEP_TOKENS, MAX_ROWS = 24, 4  # so prompts come in chunks beside rows that decode, and two wait


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_the_peer_answers_as_generate_does_and_attends_by_our_kernels(name: str, tmp_path: Path) -> None:
    from tests.bench import continuous_peer

    directory = tiny.save_tiny(tmp_path, name, num_key_value_heads=2, num_hidden_layers=2, eos_token_id=None)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(DEVICE).eval()
    chance = random.Random(3)
    requests = [([chance.randrange(2, tiny.VOCABULARY) for _ in range(n)], 4 + n % 7) for n in LENGTHS]
    alone = [_generate(model, prompt, count) for prompt, count in requests]

    with (
        patch.object(continuous_peer, "paged_decode", wraps=continuous_peer.paged_decode) as decode,
        patch.object(continuous_peer, "paged_prefill", wraps=continuous_peer.paged_prefill) as prefill,
        continuous_peer.continuous_peer(
            model, longest=64, max_rows=MAX_ROWS, num_blocks=64, step_tokens=STEP_TOKENS
        ) as answer,
    ):
        assert answer(requests)[1] == alone
        assert answer(requests[1:3])[1] == alone[1:3]

    assert len({token for tokens in alone for token in tokens}) >= 10, "greedy answers of this model say too little"
    assert prefill.called
    assert decode.call_count > prefill.call_count  # Steps of decodes alone have no prefill.
    assert model.config._attn_implementation == "sdpa"


def _generate(model: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt], device=DEVICE)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    return out[0, len(prompt) :].tolist()
