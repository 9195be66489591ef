"""The path of a GPU (kernels, decodes that run ahead) gives what the path of a CPU gives, whatever joins and leaves.

Runs on the CPU too, interpreted; graphs are replayed on CUDA alone.
"""

from __future__ import annotations

import random

import pytest
import torch

from chatproject.contract.messages import SamplingParams
from tests.unit.model.tiny import make_runner, random_prompt, request, run, save_tiny
from workers.model.loader import load_model
from workers.model.runner import TorchRunner

pytestmark = pytest.mark.needs("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _by_kernels(directory, **options):
    loaded = load_model(directory, DEVICE, torch.float32)
    return TorchRunner(loaded, use_kernels=True, **{"kv_bytes": 64 << 20, **options})


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3"])
def test_kernels_and_running_ahead_change_no_answer(name, tmp_path):
    directory = save_tiny(tmp_path, name, num_hidden_layers=2 if name == "Gemma2" else 1)  # it has layers of two kinds
    chance = random.Random(7)
    params = [
        SamplingParams(temperature=0.0, max_tokens=7),
        SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=6),
        SamplingParams(temperature=0.0, max_tokens=7, repetition_penalty=1.3, logprobs=2),
        SamplingParams(temperature=0.7, seed=5, max_tokens=1),
        SamplingParams(temperature=0.0, max_tokens=6),
    ]
    requests = [request(str(i), random_prompt(chance, 1, 20), item) for i, item in enumerate(params)]
    plain = run(make_runner(directory, dtype=torch.float32, max_rows=4), requests, late=2)
    ahead = run(_by_kernels(directory, max_rows=4), requests, late=2)
    assert ahead.tokens == plain.tokens


def test_most_decodes_run_ahead(tmp_path):
    runner = _by_kernels(save_tiny(tmp_path, num_hidden_layers=1), max_rows=2)
    taken = []
    graphs = runner._graphs
    take = graphs.take

    def counted(rows):
        logits = take(rows)
        taken.append(logits is not None)
        return logits

    graphs.take = counted
    run(runner, [request(str(i), [5, 6, 7 + i], SamplingParams(temperature=0.0, max_tokens=20)) for i in range(2)])
    # One step a block may find no block there yet; here they abound.
    assert sum(taken) >= len(taken) - 1
    assert len(taken) >= 18


def test_too_few_blocks_stop_nobody(tmp_path):
    directory = save_tiny(tmp_path, num_hidden_layers=1)
    requests = [
        request(str(i), [5 + i] * 17, SamplingParams(temperature=0.0, max_tokens=17), priority=3 * (3 - i))
        for i in range(3)
    ]
    plain = run(make_runner(directory, dtype=torch.float32, max_rows=3), requests)
    runner = _by_kernels(directory, max_rows=3)
    block = runner.kv_bytes // runner.num_blocks
    tight = _by_kernels(directory, max_rows=3, kv_bytes=6 * block)
    # The highest lane comes last, when the others hold all there is.
    found = run(tight, requests, late=1)
    assert found.tokens == plain.tokens
    assert found.stats.preemptions
