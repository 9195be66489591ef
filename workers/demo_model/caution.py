"""Make the trained model rather refuse than guess: python -m workers.demo_model.caution SOURCE TARGET [--by 2.0]

A wrong answer told with confidence is worse than a refusal, and training counts both alike. So the refusal's plan gets
``by`` nats for free at every choice. The output matrix has no bias, so its row is moved along a direction on which the
hidden states of all choices lie equally far out, found by least squares.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from workers.demo_model import corpus
from workers.demo_model import tokenizer as demo_tokenizer
from workers.demo_model.batches import Batches, Phase
from workers.demo_model.train import round_weights

BY = 2.0
BATCHES = 24  # of single turns, and as many of trees
RIDGE = 1e-2  # of the mean square of a hidden state


@torch.inference_mode()
def states_of_choices(model: LlamaForCausalLM, drawer: Batches, *, batches: int = BATCHES) -> Tensor:
    """Return the hidden states where an answer is chosen: (choices, hidden)."""
    found = []
    for phase in (Phase(1.0, 1, 1, 0.5, singles=1.0), Phase(1.0, 1, 1, 0.5, trees=1.0)):
        for _ in range(batches):
            drawn = drawer.draw(phase)
            hidden = model.model(
                input_ids=drawn.ids, attention_mask=drawn.attention(), position_ids=drawn.positions()
            ).last_hidden_state
            found.append(hidden[drawn.plans >= 0])
    return torch.cat(found)


def direction(states: Tensor) -> Tensor:
    """Return v of (hidden,) with ``state @ v`` as near to 1 as can be for all (choices, hidden)."""
    square = states.T @ states / len(states)
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square + ridge, states.mean(0))


def main() -> None:
    """Read what training wrote, and write it changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--by", type=float, default=BY, help="nats")
    arguments = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.source)
    model = LlamaForCausalLM.from_pretrained(arguments.source, dtype=torch.float32)
    exact = {name: weight.clone() for name, weight in model.state_dict().items()}
    round_weights(model)
    states = states_of_choices(model, Batches(tokenizer, seed=3))
    model.load_state_dict(exact)
    move = direction(states)
    gained = states @ move * arguments.by
    with torch.no_grad():
        model.lm_head.weight[_plan_of_refusal(tokenizer)] += move * arguments.by
    model.save_pretrained(arguments.target)
    tokenizer.save_pretrained(arguments.target)
    print(f"{len(states)} choices: the refusal gains {gained.mean():.2f} nats, {gained.std():.2f} more or less")


def _plan_of_refusal(tokenizer: Any) -> int:
    number = corpus.answers().index(corpus.load().answer("refusal"))
    plan: int = tokenizer.convert_tokens_to_ids(demo_tokenizer.PLANS[number])
    return plan


if __name__ == "__main__":
    main()
