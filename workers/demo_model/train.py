"""Train the demo model from scratch on the CPU: python -m workers.demo_model.train DIRECTORY [--minutes 22]

The answers alone are learned. Rows grow from 256 to 1,024 tokens, so an answer is right at any place of a conversation.
In the second half the forward pass rounds the weights as GPTQ will (straight-through), so it costs next to nothing.
Two processes of one thread each work on the same weights in shared memory without waiting for each other (Hogwild, Niu
et al. 2011, arXiv:1106.5730): on a busy machine with two cores two threads would wait for each other at every product.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.demo_model import tokenizer as demo_tokenizer
from workers.demo_model.conversations import ConversationSampler

GROUP = 64  # input columns that share one scale
PEAK_RATE, WARM_UP = 2e-3, 0.03
ROUND_FROM = 0.55  # share of the run after which weights are rounded in the forward pass
# (until this share of the run, rows, tokens in a row)
PHASES = ((0.72, 8, 256), (0.88, 5, 512), (1.0, 3, 1024))
STOPPED = 0.85  # share of answers that break off, as after Stop: more questions per token, and a truer history


class RoundedLikeGPTQ(nn.Module):
    """Symmetric 4 bits per group of columns; gradients pass as if nothing had been rounded."""

    is_active = False  # of this process

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in)."""
        if not RoundedLikeGPTQ.is_active:
            return weight
        groups = weight.view(weight.shape[0], -1, GROUP)  # (out, in / GROUP, GROUP)
        scale = (groups.abs().amax(-1, keepdim=True) * (2 / 15)).clamp_min(1e-8)
        rounded = ((groups / scale).round().clamp(-8, 7) * scale).view_as(weight)
        return weight + (rounded - weight).detach()


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The shape of the model, untrained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=demo_tokenizer.VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=demo_tokenizer.CONTEXT,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, rms_norm_eps=1e-5, initializer_range=0.03,
        )
    )  # fmt: skip


class Batches:
    """Rows of whole conversations with the weight of each token in the loss."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._sampler = ConversationSampler(self._rng)
        self._special = {
            name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("system", "user", "assistant")
        }
        self._memory: dict[str, list[int]] = {}

    def draw(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """(rows, length + 1) token ids, and the loss weight of each of them; 0 for all but answers."""
        ids = torch.full((rows, length + 1), self._tokenizer.pad_token_id)
        weights = torch.zeros(rows, length + 1)
        for row in range(rows):
            tokens, marks = self._conversation(length + 1)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            weights[row, : len(tokens)] = torch.tensor(marks)
        return ids, weights

    def _conversation(self, room: int) -> tuple[list[int], list[float]]:
        end, special = self._tokenizer.eos_token_id, self._special
        system = self._sampler.start()
        tokens = [special["system"], *self._encode(system), end] if system else []
        marks = [0.0] * len(tokens)
        while len(tokens) < room:
            question, answer = self._sampler.turn()
            asked = [special["user"], *self._encode(question), end, special["assistant"]]
            told = [*self._remembered(answer), end]
            # The first tokens decide which answer it is; the rest follows from them.
            weights = [2.0] * min(8, len(told)) + [0.7] * max(0, len(told) - 8)
            if len(told) > 24 and self._rng.random() < STOPPED:
                keep = self._rng.randint(6, 16)
                told, weights = [*told[:keep], end], [*weights[:keep], 0.0]  # Such an end is not to be learned.
            tokens += asked + told
            marks += [0.0] * len(asked) + weights
        return tokens[:room], marks[:room]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _remembered(self, answer: str) -> list[int]:
        if answer not in self._memory:
            self._memory[answer] = self._encode(answer)
        return self._memory[answer]


def train(directory: Path, minutes: float, processes: int, start: Path | None) -> None:
    """Train for ``minutes`` of wall time, from ``start`` or from nothing, and save model and tokenizer."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # Also makes the fork below safe: no thread pool exists yet.
    # Never a new vocabulary for old weights: it depends on the data, and any change of the data scrambles it.
    tokenizer: Any = AutoTokenizer.from_pretrained(start) if start else demo_tokenizer.make()
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32) if start else new_model(tokenizer)
    linear = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    for module in linear:
        parametrize.register_parametrization(module, "weight", RoundedLikeGPTQ())
    model.share_memory()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    first = 100 if start else 0  # A run that goes on sees other conversations.
    fork = multiprocessing.get_context("fork")
    others = [
        fork.Process(target=_work, args=(model, tokenizer, minutes, seed))
        for seed in range(first + 1, first + processes)
    ]
    for other in others:
        other.start()
    _work(model, tokenizer, minutes, first)
    for other in others:
        other.join()
    RoundedLikeGPTQ.is_active = False
    for module in linear:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _work(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, minutes: float, seed: int) -> None:
    batches = Batches(tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.97), weight_decay=0.05)
    start, step, seen = time.monotonic(), 0, 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        RoundedLikeGPTQ.is_active = share >= ROUND_FROM
        _, rows, length = next(phase for phase in PHASES if share < phase[0])
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * _rate(share)
        loss = _loss(model, *batches.draw(rows, length))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + rows * length
        if step % 50 == 0:
            rate = seen / (time.monotonic() - start)
            print(f"process {seed}, step {step}, {share:.0%}: loss {loss.item():.4f}, {rate:.0f} tokens/s", flush=True)
    print(f"process {seed}: {step} steps, {seen:,} tokens, {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def _loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # (B, T, H)
    counted = weights[:, 1:] > 0  # (B, T)
    logits = model.lm_head(hidden[counted])  # (N counted tokens, V)
    losses = nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    marks = weights[:, 1:][counted]
    return (losses * marks).sum() / marks.sum()


def _rate(share: float) -> float:
    if share < WARM_UP:
        return share / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=22)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--start", type=Path, help="a directory that an earlier run has written")
    arguments = parser.parse_args()
    train(arguments.directory, arguments.minutes, arguments.processes, arguments.start)


if __name__ == "__main__":
    main()
