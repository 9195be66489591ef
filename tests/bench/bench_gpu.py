"""Decode and prefill of a Qwen2.5-7B shape, GPTQ int4 g128, on one GPU, against the roofline of that GPU and its peers.

Needs torch, transformers, Triton and a GPU alone: `python -m tests.bench.bench_gpu [part ...]`. Weights are random and
not zero: right for speed and memory, wrong for answers. Copy bandwidth and the rate of matrix products are measured in
the same run; the roofline of a step is max(bytes / bandwidth, operations / rate).
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from chatproject.contract.messages import SamplingParams
from tests.bench.table import Row, median_and_range, show
from workers.engine.engine import Engine
from workers.engine.interfaces import BLOCK_TOKENS, Piece, SequenceRequest, StepOutput
from workers.engine.interfaces import Row as EngineRow
from workers.model.attention import ATTENTION_NAME
from workers.model.fusion import fuse
from workers.model.gptq import GPTQTensors
from workers.model.gptq_triton import TritonInt4Linear, join
from workers.model.loader import LoadedModel
from workers.model.runner import TorchRunner
from workers.model.triton_choice import tune

CONTEXT, GROUP, STEPS, ROUNDS = 1024, 128, 12, 5
GOALS = {1: 0.42, 8: 0.43, 32: 0.45, 64: 0.40, 128: 0.35, 256: 0.35}
GREEDY = SamplingParams(temperature=0.0, max_tokens=4096)
CUDA = torch.device("cuda")
PeerRun = Callable[[list[tuple[list[int], int]]], tuple[float, list[list[int]]]]  # requests -> seconds, answers


class Rates:
    """What this GPU reaches: bytes/s copied (read and written), operations/s of a bfloat16 product."""

    def __init__(self) -> None:
        source = torch.empty(1 << 32, dtype=torch.uint8, device=CUDA).random_(1, 255)
        target = torch.empty_like(source)
        self.bytes_s = 2 * source.numel() / _seconds(lambda: target.copy_(source), 8)
        left, right = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
        self.flops_s = 2 * 8192**3 / _seconds(lambda: left @ right, 8)


def config() -> Qwen2Config:
    """Return the shape of Qwen2.5-7B."""
    return Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, attn_implementation=ATTENTION_NAME,
    )  # fmt: skip


def random_model() -> Qwen2ForCausalLM:
    """Return the model on the GPU, layers apart, each with weights of its own in memory (equal by layer)."""
    torch.manual_seed(0)
    shape = config()
    with torch.device("meta"):
        model = Qwen2ForCausalLM(shape).to(torch.bfloat16)
    layers = model.model.layers
    made: dict[str, TritonInt4Linear] = {}
    for layer in layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    if name not in made:
                        made[name] = _random_linear(linear.in_features, linear.out_features, linear.bias is not None)
                    setattr(parent, name, copy.deepcopy(made[name]))
    _materialise(model)
    model.eval().requires_grad_(False)
    return model


def _materialise(model: Qwen2ForCausalLM) -> None:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                fresh = torch.empty(parameter.shape, dtype=torch.bfloat16, device=CUDA)
                fresh.fill_(1) if parameter.dim() == 1 else fresh.normal_(0, 0.02)
                module._parameters[name] = torch.nn.Parameter(fresh, requires_grad=False)
    rotary = type(model.model.rotary_emb)(model.config, device=CUDA)
    model.model.rotary_emb = rotary


def _random_linear(inputs: int, outputs: int, has_bias: bool) -> TritonInt4Linear:
    groups = inputs // GROUP
    tensors = GPTQTensors.read(
        qweight=torch.randint(-(2**31), 2**31 - 1, (inputs // 8, outputs), dtype=torch.int32),
        qzeros=torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        scales=(torch.rand(groups, outputs) * 0.5 + 0.75) * 0.0043 * (3584 / inputs) ** 0.5,
        g_idx=None, bias=torch.randn(outputs) * 0.02 if has_bias else None, in_features=inputs, out_features=outputs,
        bits=4, group_size=GROUP, is_v1=True,
    )  # fmt: skip
    return TritonInt4Linear(tensors, dtype=torch.bfloat16, device=CUDA)


def runner_of(model: Qwen2ForCausalLM, max_rows: int, kv_bytes: int | None = None) -> TorchRunner:
    """Return our runner over the model, parts joined."""
    print(f"joined {fuse(model, join)} parts", flush=True)
    began = time.perf_counter()
    tune([layer for layer in model.modules() if isinstance(layer, TritonInt4Linear)])
    print(f"kernels chosen in {time.perf_counter() - began:.1f} s", flush=True)
    loaded = LoadedModel(
        model=model, config=model.config, directory=Path("."), device=CUDA, dtype=torch.bfloat16,
        eos_tokens=frozenset(), num_quantised=0,
    )  # fmt: skip
    began = time.perf_counter()
    runner = TorchRunner(loaded, max_rows=max_rows, context_tokens=4096, kv_bytes=kv_bytes)
    torch.cuda.synchronize()
    print(f"runner with {runner.num_blocks} blocks and its graphs in {time.perf_counter() - began:.1f} s", flush=True)
    return runner


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes a step reads: all but the embedding, of which it reads a row per token."""
    skipped = model.model.embed_tokens.weight.data_ptr()  # type: ignore[union-attr, operator]
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.data_ptr() != skipped}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def decode_rows(model: Qwen2ForCausalLM, runner: TorchRunner, rates: Rates, sizes: list[int]) -> list[Row]:
    """Time decode steps as the engine asks for them, one after another."""
    read = weight_bytes(model)
    shape = model.config
    per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * 128 * 2  # KV bytes of a position
    params = 6.53e9 + shape.vocab_size * shape.hidden_size
    found = []
    for count in sizes:
        per_row = -(-(CONTEXT + 2 * STEPS * (ROUNDS + 1)) // BLOCK_TOKENS)
        tables = [tuple(range(i * per_row, (i + 1) * per_row)) for i in range(count)]
        start, tokens, times = CONTEXT, [7 + i for i in range(count)], []
        for _ in range(ROUNDS + 1):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(STEPS):
                rows = [
                    EngineRow(
                        sequence_id=str(i), tokens=(tokens[i],), start=start, block_table=tables[i], sampling=GREEDY
                    )
                    for i in range(count)
                ]
                results = runner.step(rows)
                assert all(r.token is not None for r in results), results[:3]
                tokens, start = [r.token for r in results if r.token is not None], start + 1
            times.append((time.perf_counter() - began) / STEPS)
        limit = max((read + count * CONTEXT * per_token) / rates.bytes_s, 2 * count * params / rates.flops_s)
        step = times[1:]
        found.append(
            Row(
                what=f"decode step of {count} rows, Qwen2.5-7B shape, int4 g{GROUP}, context {CONTEXT}",
                against="roofline of this GPU",
                ratio=median_and_range([limit / s for s in step]),
                goal=f"{GOALS.get(count, 0)}",
                note=f"{statistics.median(step) * 1e3:.2f} ms, limit {limit * 1e3:.2f} ms; "
                f"{count / statistics.median(step):.0f} tok/s",
            )
        )
        print(show(found[-1:]).splitlines()[-1], flush=True)
    return found


def profile_step(runner: TorchRunner, count: int) -> None:
    """Print where the GPU's time of a decode step goes, by kernel."""
    per_row = -(-(CONTEXT + 200) // BLOCK_TOKENS)
    tables = [tuple(range(i * per_row, (i + 1) * per_row)) for i in range(count)]
    tokens, start = [7 + i for i in range(count)], CONTEXT

    def steps(number: int) -> None:
        nonlocal tokens, start
        for _ in range(number):
            rows = [
                EngineRow(sequence_id=str(i), tokens=(tokens[i],), start=start, block_table=tables[i], sampling=GREEDY)
                for i in range(count)
            ]
            tokens, start = [r.token or 0 for r in runner.step(rows)], start + 1

    steps(3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        steps(5)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    kernels = [
        (item.key[:70], item.self_device_time_total / 5e3, item.count / 5)
        for item in profile.key_averages()
        if item.self_device_time_total
    ]
    busy = sum(item[1] for item in kernels)
    print(f"\n{count} rows: wall {wall / 5 * 1e3:.2f} ms per step under the profiler, kernels {busy:.2f} ms")
    for name, ms, number in sorted(kernels, key=lambda item: -item[1])[:16]:
        print(f"  {ms:7.3f} ms {number:6.0f}x  {name}")
    sys.stdout.flush()


class _NoText:
    def push(self, token: int) -> Piece:
        return Piece(text="")

    def flush(self) -> str:
        return ""


class _Count:
    def __init__(self) -> None:
        self.ended = 0
        self.tokens: dict[str, list[int]] = {}

    def on_step(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.sequence_id, []).extend(output.tokens)
            self.ended += output.finish is not None


def engine_run(
    runner: TorchRunner, prompts: list[list[int]], max_tokens: int, step_tokens: int = 2048
) -> tuple[float, dict[str, list[int]], Engine]:
    """Run all prompts to their end through the engine; return seconds, answers, engine."""
    count = _Count()
    engine = Engine(runner, listener=count, step_tokens=step_tokens, clock=time.perf_counter)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add(
            SequenceRequest(
                sequence_id=str(index), prompt=tuple(prompt), text=_NoText(), user_id=str(index),
                sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens),
            )
        )  # fmt: skip
    while count.ended < len(prompts):
        engine.step()
    torch.cuda.synchronize()
    return time.perf_counter() - began, count.tokens, engine


def profile_prefill(runner: TorchRunner) -> None:
    """Print where the GPU's time of prefill goes, by kernel."""
    prompts = torch.randint(10, 150000, (4, 2000), generator=torch.Generator().manual_seed(9)).tolist()
    engine_run(runner, prompts, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds, _, _ = engine_run(runner, [prompt[::-1] for prompt in prompts], 1)
    kernels = [
        (item.key[:70], item.self_device_time_total / 1e3, item.count)
        for item in profile.key_averages()
        if item.self_device_time_total
    ]
    print(f"\nprefill of 8,000: wall {seconds * 1e3:.1f} ms, kernels {sum(item[1] for item in kernels):.1f} ms")
    for name, ms, number in sorted(kernels, key=lambda item: -item[1])[:14]:
        print(f"  {ms:7.3f} ms {number:6.0f}x  {name}")
    sys.stdout.flush()


def prefill_rows(runner: TorchRunner) -> list[Row]:
    """Prompts of 2,000 tokens with an answer of one token: tokens of prompts per second."""
    rates = []
    for round_ in range(4):
        generator = torch.Generator().manual_seed(round_)
        prompts = torch.randint(10, 150000, (12, 2000), generator=generator).tolist()
        seconds, _, _ = engine_run(runner, prompts, 1)
        rates.append(12 * 2000 / seconds)
    return [
        Row(
            what="prefill, 12 prompts of 2,000 tokens, steps of 2,048", against="36,000 tok/s",
            ratio=median_and_range([rate / 36000 for rate in rates[1:]]), goal="1x",
            note=f"{statistics.median(rates[1:]):.0f} tok/s",
        )
    ]  # fmt: skip


@torch.inference_mode()
def unpack(model: Qwen2ForCausalLM) -> None:
    """Give every layer its dense weights: our kernels count in a buffer, so a compiler makes no graph of them."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TritonInt4Linear):
                dense = torch.nn.Linear(
                    child.in_features, child.out_features, bias=child.bias is not None, device="meta"
                )
                dense.weight = torch.nn.Parameter(child.dense(torch.bfloat16).clone(), requires_grad=False)
                if child.bias is not None:
                    dense.bias = torch.nn.Parameter(child.bias.clone(), requires_grad=False)
                setattr(parent, name, dense)


def peer_rows(runner: TorchRunner, peer: Qwen2ForCausalLM) -> list[Row]:
    """Time one answer at batch 1 against `generate`, and 32 against continuous batching, over the same weights."""
    found: list[Row] = []
    prompt = torch.randint(10, 150000, (1, CONTEXT), generator=torch.Generator().manual_seed(3))
    count = 64
    engine_run(runner, prompt.tolist(), 8)
    _ours_s, answers, _ = engine_run(runner, prompt.tolist(), count)
    ours = answers["0"]

    def generate(**options: object) -> tuple[float, list[int]]:
        torch.cuda.synchronize()
        began = time.perf_counter()
        ids = prompt.to(CUDA)
        out = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            **options,
        )
        torch.cuda.synchronize()
        return time.perf_counter() - began, out[0, CONTEXT:].tolist()

    def versus(name: str, goal: str, **options: object) -> None:
        ratios: list[float] = []
        for round_ in range(4):
            theirs_s, theirs = generate(**options)
            again_s, _, _ = engine_run(runner, prompt.tolist(), count)
            if round_:
                ratios.append(theirs_s / again_s)
        same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
        note = f"ours {again_s * 1e3:.0f} ms, theirs {theirs_s * 1e3:.0f} ms; first {same} of {count} tokens equal"
        found.append(
            Row(
                what=f"{count} tokens after {CONTEXT}",
                against=name,
                ratio=median_and_range(ratios),
                goal=goal,
                note=note,
            )
        )
        print(show(found[-1:]).splitlines()[-1], flush=True)

    versus("eager generate", "8x")
    found += _continuous_rows(runner, peer)
    unpack(peer)
    try:
        versus("generate, static cache, compiled, weights unpacked to bfloat16", "1.7x", cache_implementation="static")
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:120]}"
        found.append(Row(what="64 tokens", against="generate, compiled", ratio="FAILED", goal="1.7x", note=text))
    return found


def _continuous_rows(runner: TorchRunner, peer: Qwen2ForCausalLM) -> list[Row]:
    from tests.bench.bench_batching import _continuous
    from tests.bench.continuous_peer import continuous_peer

    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(10, 150000, (int(n),), generator=generator).tolist() for n in torch.linspace(64, 640, 32)]
    requests = [(prompt, 96) for prompt in prompts]
    found: list[Row] = []

    def versus(name: str, peer_run: AbstractContextManager[PeerRun], *, rounds: int, untimed: int = 0) -> None:
        what, against, goal = "32 requests, 64-640 in, 96 out", f"transformers continuous batching{name}", "1.6x"
        ratios: list[float] = []
        try:
            with peer_run as run:
                for round_ in range(rounds):
                    ours_s, ours, _ = engine_run(runner, prompts, 96, 512)
                    theirs_s, theirs = run(requests)
                    equal = sum(ours[str(i)] == theirs[i] for i in range(32))
                    if equal < 16:
                        raise ValueError(f"{equal} of 32 answers equal, which rounding does not explain")
                    if round_ >= untimed:
                        ratios.append(theirs_s / ours_s)
            speeds = f"ours {32 * 96 / ours_s:.0f} tok/s, theirs {32 * 96 / theirs_s:.0f}"
            row = Row(
                what=what, against=against, ratio=median_and_range(ratios), goal=goal,
                note=f"{speeds}; {equal} of 32 equal",
            )  # fmt: skip
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:120]}"
            row = Row(what=what, against=against, ratio="FAILED", goal=goal, note=text)
        print(show([row]).splitlines()[-1], flush=True)
        found.append(row)

    versus(", its own attention", nullcontext(functools.partial(_continuous, peer)), rounds=3)
    # The first rounds capture its graphs.
    with_ours = continuous_peer(peer, longest=640 + 96, max_rows=32)
    versus(" with our attention kernels", with_ours, rounds=7, untimed=2)
    return found


def _seconds(call: Callable[[], object], times: int) -> float:
    for _ in range(3):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def main() -> None:
    """Run the parts named on the command line, or all; print as they come."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parts = sys.argv[1:] or ["decode", "profile", "prefill", "peers"]
    rates = Rates()
    torch.cuda.empty_cache()
    print(
        f"{torch.cuda.get_device_name()}: copy {rates.bytes_s / 1e12:.2f} TB/s, "
        f"product {rates.flops_s / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    model = random_model()
    # Peers need memory of their own.
    runner = runner_of(model, max_rows=256, kv_bytes=20 << 30 if "peers" in parts else None)
    found: list[Row] = []
    if "decode" in parts:
        found += decode_rows(model, runner, rates, [1, 8, 32, 64, 128, 256])
    if "profile" in parts:
        for count in (1, 64, 256):
            profile_step(runner, count)
        profile_prefill(runner)
    if "prefill" in parts:
        found += prefill_rows(runner)
    if "peers" in parts:
        peer = random_model()
        peer.set_attn_implementation("sdpa")
        found += peer_rows(runner, peer)
    print(show(found))
    gc.collect()


if __name__ == "__main__":
    main()
