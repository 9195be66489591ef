"""Train the demo model from scratch on the CPU: python -m workers.demo_model.train DIRECTORY [--minutes 60]

A network of this size needs hours to find out by itself which words tell questions apart; a bag of words finds out in a
minute. So the token embeddings begin as those of a bag (bag.py), and the first layer begins by averaging them.

The answers alone are learned, and of most of them only the beginning: it decides which answer it is, and the rest is
learned by heart from the few that are whole. Where an answer begins, a head that is thrown away afterwards names it as
a whole, which shows the network sooner what to look for in a question. Rows hold a single turn at first, so that
nothing else draws attention, and grow to 1,024 tokens, so that an answer is right at any place of a conversation. In
the end the forward pass rounds the weights to 4 bits (straight-through), and quantise.py packs exactly those numbers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.demo_model import bag
from workers.demo_model import tokenizer as demo_tokenizer
from workers.demo_model.conversations import ConversationSampler

GROUP = 64  # input columns that share one scale
MATRIX_RATE, OTHER_RATE, WARM_UP = 1e-3, 4e-3, 0.01
ANSWERS, NAMED = 1024, 1.0  # more answers than there are, and the weight of naming them
ROUND_FROM = 0.6  # share of the run after which weights are rounded in the forward pass


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run: ``until`` this share of it, ``rows`` of ``length`` tokens a step."""

    until: float
    rows: int
    length: int
    broken_off: float  # share of answers that break off early: more questions per token
    is_single: bool = False  # a row is one turn, beside others of about its length


PHASES = (
    Phase(0.35, 64, 48, 1.0, is_single=True),
    Phase(0.55, 12, 128, 0.9),
    Phase(0.75, 6, 256, 0.5),
    Phase(0.9, 3, 512, 0.2),
    Phase(1.0, 2, 1024, 0.1),
)


class RoundedLikeGPTQ(nn.Module):
    """Symmetric 4 bits per group of columns; gradients pass as if nothing had been rounded."""

    is_active = False  # of this process

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in)."""
        if not RoundedLikeGPTQ.is_active:
            return weight
        numbers, scales = rounded(weight.detach())
        return weight + (numbers * scales.repeat_interleave(GROUP, 1) - weight.detach())


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> whole numbers from -8 to 7 (out, in), and the scale of each group (out, in / GROUP)."""
    groups = weight.view(weight.shape[0], -1, GROUP)  # (out, in / GROUP, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) * (2 / 15)).clamp_min(1e-8)
    return (groups / scales).round_().clamp_(-8, 7).view_as(weight), scales[..., 0]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The shape of the model, untrained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=demo_tokenizer.VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=demo_tokenizer.CONTEXT,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, rms_norm_eps=1e-5, initializer_range=0.03,
        )
    )  # fmt: skip


Row = tuple[list[int], list[float], list[int]]  # token ids, their weight in the loss, which answer begins there


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
        self._numbers: dict[str, int] = {}
        self._waiting: list[list[Row]] = []  # batches of single turns

    def questions(self, count: int) -> list[tuple[list[int], int]]:
        """``count`` first questions of conversations, as token ids, and which answer is right."""
        found = []
        for _ in range(count):
            self._sampler.start()
            question, answer = self._sampler.turn()
            found.append((self._encode(question), self._number(answer)))
        return found

    def draw(self, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        """Three of (rows, length + 1): token ids, their weight in the loss, and which answer begins there.

        The weight is 0 for all but answers, and for an end that comes too early. Where no answer begins, its number is
        -1.
        """
        rows = self._singles(phase) if phase.is_single else [self._conversation(phase) for _ in range(phase.rows)]
        ids, weights, answers = zip(*rows, strict=True)
        return (
            _padded(ids, self._tokenizer.pad_token_id),
            _padded(weights, 0.0),
            _padded(answers, -1),
        )

    def _singles(self, phase: Phase) -> list[Row]:
        """A batch of single turns that are about as long as each other: little is spent on padding."""
        if not self._waiting:
            turns = sorted((self._conversation(phase) for _ in range(16 * phase.rows)), key=lambda row: len(row[0]))
            self._waiting = [turns[at : at + phase.rows] for at in range(0, len(turns), phase.rows)]
            self._rng.shuffle(self._waiting)
        return self._waiting.pop()

    def _conversation(self, phase: Phase) -> Row:
        end, special = self._tokenizer.eos_token_id, self._special
        room = phase.length + 1
        system = self._sampler.start()
        tokens = [special["system"], *self._encode(system), end] if system and not phase.is_single else []
        marks, answers = [0.0] * len(tokens), [-1] * len(tokens)
        while len(tokens) < room:
            question, answer = self._sampler.turn()
            asked = [special["user"], *self._encode(question), end, special["assistant"]]
            told = [*self._remembered(answer), end]
            # The first tokens decide which answer it is; the rest follows from them.
            weights = [2.0] * min(8, len(told)) + [0.7] * max(0, len(told) - 8)
            if len(told) > 12 and self._rng.random() < phase.broken_off:
                keep = self._rng.randint(4, 9)
                told, weights = [*told[:keep], end], [*weights[:keep], 0.0]  # Such an end is not to be learned.
            tokens += asked + told
            marks += [0.0] * len(asked) + weights
            answers += [-1] * len(asked) + [self._number(answer)] + [-1] * (len(told) - 1)
            if phase.is_single:
                break
        return tokens[:room], marks[:room], answers[:room]

    def _number(self, answer: str) -> int:
        return self._numbers.setdefault(answer, len(self._numbers))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _remembered(self, answer: str) -> list[int]:
        if answer not in self._memory:
            self._memory[answer] = self._encode(answer)
        return self._memory[answer]


def _padded(rows: Sequence[Sequence[float]], filler: float) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def train(directory: Path, minutes: float, start: Path | None) -> None:
    """Train for ``minutes`` of wall time, from nothing or on from ``start``, and save model and tokenizer."""
    torch.manual_seed(0)
    # Never a new vocabulary for old weights: it depends on the data, and any change of the data scrambles it.
    tokenizer: Any = AutoTokenizer.from_pretrained(start) if start else demo_tokenizer.make()
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32) if start else new_model(tokenizer)
    namer = nn.Linear(model.config.hidden_size, ANSWERS)
    batches = Batches(tokenizer, seed=1 if start else 0)  # A run that goes on sees other conversations.
    if not start:
        embeddings = bag.fit(batches.questions, model.config.vocab_size, namer)
        bag.begin(model, embeddings, head=tokenizer.convert_tokens_to_ids(demo_tokenizer.ASSISTANT))
    linear = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    matrices: list[Tensor] = [module.weight for module in linear]
    others: list[Tensor] = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    others += namer.parameters()
    for module in linear:  # The parameters stay those that were collected.
        parametrize.register_parametrization(module, "weight", RoundedLikeGPTQ())
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "peak": MATRIX_RATE, "weight_decay": 0.05}, {"params": others, "peak": OTHER_RATE}],
        betas=(0.9, 0.98), weight_decay=0.01, fused=True,
    )  # fmt: skip
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    begin, step, seen = time.monotonic(), 0, 0
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        RoundedLikeGPTQ.is_active = bool(start) or share >= ROUND_FROM
        phase = next(phase for phase in PHASES if share < phase.until)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(share, goes_on=bool(start))
        ids, weights, answers = batches.draw(phase)
        told, named = _loss(model, namer, ids, weights, answers)
        model.zero_grad()
        namer.zero_grad()
        (told + NAMED * named).backward()
        nn.utils.clip_grad_norm_(matrices + others, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + ids.numel()
        if step % 100 == 0:
            rate = seen / (time.monotonic() - begin)
            print(
                f"step {step}, {share:.0%}: telling {told.item():.4f}, naming {named.item():.4f}, {rate:.0f} tokens/s",
                flush=True,
            )
        if step % 500 == 0:
            _save(model, tokenizer, directory)
    _save(model, tokenizer, directory)
    print(f"{step} steps, {seen:,} tokens, {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """The weights as they are, without the rounding."""
    plain = {name.replace("parametrizations.weight.original", "weight"): t for name, t in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=plain)
    tokenizer.save_pretrained(directory)


def _loss(
    model: LlamaForCausalLM, namer: nn.Linear, ids: Tensor, weights: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """How surprising the answers' tokens were, and how surprising which answer it was."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # (B, T, H)
    counted = weights[:, 1:] > 0  # (B, T)
    marks = weights[:, 1:][counted]
    logits = model.lm_head(hidden[counted])  # (N counted tokens, V)
    losses = nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    begins = answers[:, 1:] >= 0  # (B, T)
    named = nn.functional.cross_entropy(namer(hidden[begins]), answers[:, 1:][begins])
    return (losses * marks).sum() / marks.sum(), named


def _rate(share: float, *, goes_on: bool) -> float:
    """Up in a moment, level for half of the run, then straight down; of a run that goes on, down all the way."""
    if share < WARM_UP:
        return share / WARM_UP
    return min(1.0, 0.01 + 0.99 * (1 - share) / (1.6 if goes_on else 0.55))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--start", type=Path, help="a directory that an earlier run has written")
    arguments = parser.parse_args()
    train(arguments.directory, arguments.minutes, arguments.start)


if __name__ == "__main__":
    main()
