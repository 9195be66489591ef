"""Our engine against sequential `generate` and continuous batching of transformers.

The same weights, the same threads, the same 32 mixed requests, greedy.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, ContinuousBatchingManager, GenerationConfig

from tests.bench.mixed import REQUESTS, STEP_TOKENS, Request, mixed_requests, ours
from tests.bench.models import as_loaded, random_llama
from tests.bench.table import Row, median_and_range
from workers.engine.interfaces import BLOCK_TOKENS
from workers.model.runner import TorchRunner

ROUNDS = 5


def _generate(model: torch.nn.Module, requests: list[Request]) -> tuple[float, list[list[int]]]:
    began, answers = time.perf_counter(), []
    with torch.inference_mode():
        for prompt, count in requests:
            ids = torch.tensor([prompt])
            out = model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, min_new_tokens=count
            )
            answers.append(out[0, len(prompt) :].tolist())
    return time.perf_counter() - began, answers


def _continuous(model: torch.nn.Module, requests: list[Request]) -> tuple[float, list[list[int]]]:
    """transformers' own continuous batching; starting its thread and sizing its cache are not counted."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=128, eos_token_id=-1, pad_token_id=0)
    manager: ContinuousBatchingManager = model.init_continuous_batching(  # type: ignore[operator]
        generation_config=settings,
        continuous_batching_config=batching_config(num_blocks=1024, max_batch_tokens=STEP_TOKENS),
    )
    manager.start()
    try:
        collect(manager, [manager.add_request([1, 2, 3], max_new_tokens=2)])  # Until here its cache is made.
        began = time.perf_counter()
        names = [manager.add_request(prompt, max_new_tokens=count) for prompt, count in requests]
        answers = collect(manager, names)
        return time.perf_counter() - began, answers
    finally:
        manager.stop(block=True)


def batching_config(**options: Any) -> ContinuousBatchingConfig:
    """Return the settings of a peer, with blocks of as many tokens as ours."""
    names = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    page_size = "page_size" if "page_size" in names else "block_size"  # its name up to 5.17
    return ContinuousBatchingConfig(**{page_size: BLOCK_TOKENS}, **options)


def collect(manager: ContinuousBatchingManager, names: list[str | None]) -> list[list[int]]:
    """Return the answers to the requests of ``names``, in their order."""
    found: dict[str, list[int]] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("transformers' continuous batching ended by itself")
        if result is not None and result.error is not None:
            raise RuntimeError(f"transformers' continuous batching failed: {result.error}")
        if result is not None and result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
    return [found[str(name)] for name in names]


def rows() -> list[Row]:
    """Measure, interleaved, and return the table's rows."""
    return [*_shape(layers=6, width=512, rounds=ROUNDS), *_shape(layers=4, width=2048, rounds=ROUNDS)]


def _shape(*, layers: int, width: int, rounds: int) -> list[Row]:
    peer = random_llama(layers=layers, width=width)
    batching_peer = copy.deepcopy(peer)
    batching_peer.set_attn_implementation("sdpa")
    threads = torch.get_num_threads()
    runner = TorchRunner(as_loaded(copy.deepcopy(peer)), max_rows=REQUESTS, kv_bytes=1 << 30, cpu_threads=threads)
    requests = mixed_requests()
    num_tokens = sum(count for _, count in requests)
    peers: dict[str, tuple[Callable[..., tuple[float, list[list[int]]]], torch.nn.Module, str]] = {
        "sequential generate": (_generate, peer, "6x"),
        "transformers continuous batching": (_continuous, batching_peer, "1.5x"),
    }
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    equal: dict[str, int] = {}
    mine: list[float] = []
    for _ in range(rounds):
        ours_s, answers = ours(runner, requests)
        mine.append(num_tokens / ours_s)
        for name, (run, model, _) in peers.items():
            peer_s, theirs = run(model, requests)
            equal[name] = sum(left == right for left, right in zip(answers, theirs, strict=True))
            ratios[name].append(peer_s / ours_s)
    return [
        Row(
            what=f"{REQUESTS} mixed requests, Llama {layers} x {width}, fp32, {threads} threads",
            against=name,
            ratio=median_and_range(ratios[name]),
            goal=goal,
            note=f"{statistics.median(mine):.0f} tok/s; {equal[name]} of {REQUESTS} answers equal",
        )
        for name, (_, _, goal) in peers.items()
    ]
