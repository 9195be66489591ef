"""Train the demo model from scratch on the CPU: python -m workers.demo_model.train DIRECTORY [--minutes 60]

An answer begins with a hidden token that names it as a whole, its plan. So what was asked has to be found out in one
place, before the first word, and the words follow from the plan alone. Which words tell questions apart would take a
network of this size hours to learn by itself, and takes a bag of words a minute: the token embeddings and what chooses
a plan begin as those of a bag (bag.py), and the first layer begins by averaging. Single turns teach the choice,
conversations teach what earlier turns mean, and recitals teach the words (batches.py). In the second half the forward
pass rounds the weights to 4 bits (straight-through), and quantise.py packs exactly those numbers.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.demo_model import bag
from workers.demo_model import tokenizer as demo_tokenizer
from workers.demo_model.batches import Batches, Drawn, Phase

GROUP = 64  # input columns that share one scale
# The embeddings know much from the start, and high rates would shake it out.
MATRIX_RATE, EMBEDDING_RATE, OTHER_RATE, WARM_UP = 5e-4, 3e-4, 1.5e-3, 0.01
ROUND_FROM = 0.5  # share of the run after which weights are rounded in the forward pass
PROMPTS = 400_000  # that the bag of words is fitted to


PHASES = (
    Phase(0.25, 14, 192, 0.9, singles=0.85, recitals=0.15),
    Phase(0.5, 14, 192, 0.9, singles=0.35, recitals=0.1),
    Phase(0.75, 8, 320, 0.8, singles=0.35, recitals=0.1),
    Phase(0.9, 5, 512, 0.5, singles=0.35, recitals=0.1),
    Phase(1.0, 3, 1024, 0.3, singles=0.35, recitals=0.1),
)
# Of a run that goes on: what most is still wrong in is what follows up on earlier turns.
LATER_PHASES = (
    Phase(0.75, 6, 512, 0.5, singles=0.35, recitals=0.05, trees=0.45),
    Phase(1.0, 3, 1024, 0.3, singles=0.35, recitals=0.05, trees=0.35),
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


@torch.no_grad()
def round_weights(model: LlamaForCausalLM) -> None:
    """Give the matrices of the layers the values that 4 bits leave of them."""
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            numbers, scales = rounded(module.weight)
            module.weight.copy_(numbers * scales.repeat_interleave(GROUP, 1))


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


def train(directory: Path, minutes: float, start: Path | None) -> None:
    """Train for ``minutes`` of wall time, from nothing or on from ``start``, and save model and tokenizer."""
    torch.manual_seed(0)
    # Never a new vocabulary for old weights: it depends on the data, and any change of the data scrambles it.
    tokenizer: Any = AutoTokenizer.from_pretrained(start) if start else demo_tokenizer.make()
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32) if start else new_model(tokenizer)
    batches = Batches(tokenizer, seed=1 if start else 0)  # A run that goes on sees other conversations.
    if not start:
        config, plans = model.config, tokenizer.convert_tokens_to_ids(demo_tokenizer.PLANS)
        fitted, namer = bag.fit(batches.prompts(PROMPTS), config.vocab_size, config.hidden_size, len(plans))
        head = tokenizer.convert_tokens_to_ids(demo_tokenizer.ASSISTANT)
        bag.begin(model, fitted, namer, head=head, plans=plans)
    _save(model, tokenizer, directory)  # A directory that cannot be written is known now, not in an hour.
    linear = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    matrices: list[Tensor] = [module.weight for module in linear]
    embeddings = model.get_input_embeddings().weight
    others: list[Tensor] = [
        p for p in model.parameters() if p is not embeddings and all(p is not matrix for matrix in matrices)
    ]
    for module in linear:  # The parameters stay those that were collected.
        parametrize.register_parametrization(module, "weight", RoundedLikeGPTQ())
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "peak": MATRIX_RATE, "weight_decay": 0.05},
            {"params": [embeddings], "peak": EMBEDDING_RATE},
            {"params": others, "peak": OTHER_RATE},
        ],
        betas=(0.9, 0.98), weight_decay=0.01, fused=True,
    )  # fmt: skip
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    begin, step, seen = time.monotonic(), 0, 0
    losses: deque[tuple[float, float]] = deque(maxlen=100)
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        RoundedLikeGPTQ.is_active = bool(start) or share >= ROUND_FROM
        phase = next(phase for phase in (LATER_PHASES if start else PHASES) if share < phase.until)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(share, goes_on=bool(start))
        drawn = batches.draw(phase)
        told, planned = _loss(model, drawn)
        optimizer.zero_grad()
        (told + planned).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + drawn.ids.numel()
        losses.append((told.item(), planned.item()))
        if step % 100 == 0:
            told_mean, planned_mean = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            print(
                f"step {step}, {share:.0%}: telling {told_mean:.4f}, planning {planned_mean:.4f}, "
                f"{seen / (time.monotonic() - begin):.0f} tokens/s",
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


def _loss(model: LlamaForCausalLM, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """How surprising the answers' tokens were, and how surprising the plans."""
    ids, plans = drawn.ids, drawn.plans
    hidden = model.model(
        input_ids=ids, attention_mask=drawn.attention(), position_ids=drawn.positions()
    ).last_hidden_state[:, :-1]  # (B, T, H)
    told, planned = drawn.is_told[:, 1:], plans[:, :-1] >= 0  # (B, T)
    targets = torch.cat([ids[:, 1:][told], plans[:, :-1][planned]])
    logits = model.lm_head(torch.cat([hidden[told], hidden[planned]]))  # (N, V)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    num_told = int(told.sum())
    return losses[:num_told].sum() / max(1, num_told), losses[num_told:].sum() / max(1, len(losses) - num_told)


def _rate(share: float, *, goes_on: bool) -> float:
    """Up in a moment, level for half of the run, then straight down; of a run that goes on, down all the way."""
    if share < WARM_UP:
        return share / WARM_UP
    return min(1.0, 0.01 + 0.99 * (1 - share) / (1.2 if goes_on else 0.55))


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
