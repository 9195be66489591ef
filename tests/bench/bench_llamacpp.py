"""Our engine against llama.cpp: the same float32 weights, threads and 32 mixed requests, greedy, both batched.

`make bench-peers` builds the peer. It gets float32 keys and values, and of its settings those that are fastest here.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tests.bench.llamacpp import build
from tests.bench.mixed import LONGEST, REQUESTS, STEP_TOKENS, Request, mixed_requests, ours
from tests.bench.models import as_loaded, random_llama
from tests.bench.table import Row, median_and_range
from workers.model.runner import TorchRunner

ROUNDS = 5
_SERVE = Path(build.__file__).with_name("serve.py")
# Flash attention off or on, keys and values of all sequences in one buffer or one each.
SETTINGS = {
    f"flash attention {'on' if flash else 'off'}, {'one buffer' if unified else 'a buffer per sequence'}": {
        "flash_attention": int(flash), "unified": unified,
    }
    for flash in (False, True)
    for unified in (False, True)
}  # fmt: skip


class Peer:
    """llama.cpp in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.about: str = self._read()["about"]

    def run(self, requests: Sequence[Request]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp's process ended with status {self._process.wait(10)}")
        return json.loads(line)


@contextmanager
def peer(model: LlamaForCausalLM, threads: int, settings: dict[str, Any]) -> Iterator[Peer]:
    """Run llama.cpp with the weights of ``model``."""
    if not build.is_built():
        raise build.PeerNotBuilt
    with tempfile.TemporaryDirectory(prefix="chat-bench-") as directory:
        weights = Path(directory) / "weights.npz"
        np.savez(weights, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
        config = model.config.to_dict() | {"rope_theta": model.config.rope_parameters["rope_theta"]}
        first = settings | {
            "weights": str(weights), "config": config, "threads": threads, "slots": REQUESTS,
            "step_tokens": STEP_TOKENS, "context_tokens": -(-LONGEST // 256) * 256, "vocabulary": config["vocab_size"],
        }  # fmt: skip
        process = subprocess.Popen(
            [build.PYTHON, _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdin
        try:
            process.stdin.write(json.dumps(first, default=str) + "\n")
            process.stdin.flush()
            yield Peer(process)
        finally:
            process.stdin.close()
            process.wait(30)


def rows() -> list[Row]:
    """Measure, interleaved, and return the table's rows."""
    return [_shape(layers=6, width=512, rounds=ROUNDS), _shape(layers=4, width=2048, rounds=ROUNDS)]


def _shape(*, layers: int, width: int, rounds: int) -> Row:
    model = random_llama(layers=layers, width=width)
    threads, requests = torch.get_num_threads(), mixed_requests()
    name = _fastest(model, threads, requests)
    with peer(model, threads, SETTINGS[name]) as theirs:
        runner = TorchRunner(as_loaded(model), max_rows=REQUESTS, kv_bytes=1 << 30, cpu_threads=threads)
        equal = _equal(ours(runner, requests)[1], theirs.run(requests)["answers"])
        ratios, mine, inside = [], [], []
        for _ in range(rounds):
            ours_s, answers = ours(runner, requests)
            found = theirs.run(requests)
            equal = min(equal, _equal(answers, found["answers"]))
            ratios.append(found["seconds"] / ours_s)
            mine.append(sum(count for _, count in requests) / ours_s)
            inside.append(found["inside_s"] / found["seconds"])
    return Row(
        what=f"{REQUESTS} mixed requests, Llama {layers} x {width}, fp32, {threads} threads",
        against="llama.cpp batched, same fp32 weights",
        ratio=median_and_range(ratios),
        goal="1.0x",
        note=f"{statistics.median(mine):.0f} tok/s; {equal} of {REQUESTS} answers equal; its best settings: {name}; "
        f"{statistics.median(inside):.1%} of its time inside llama.cpp",
    )


def _fastest(model: LlamaForCausalLM, threads: int, requests: list[Request]) -> str:
    seconds = {}
    for name, settings in SETTINGS.items():
        with peer(model, threads, settings) as candidate:
            seconds[name] = candidate.run(requests)["seconds"]
    return min(seconds, key=lambda name: seconds[name])


def _equal(left: list[list[int]], right: list[list[int]]) -> int:
    return sum(mine == theirs for mine, theirs in zip(left, right, strict=True))
