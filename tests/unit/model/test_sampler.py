"""Tokens are chosen by the request's own numbers, whoever else is in the batch."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

from chatproject.contract.messages import SamplingParams
from workers.model.sampler import choose, uniform

V = 1000


def make(chance: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=chance.choice([0, 0.2, 0.7, 1, 3, 1e9]), top_p=chance.choice([1.0, 0.99, 0.9, 0.3, 1e-9]),
        top_k=chance.choice([0, 1, 2, 40, 300, 999, 5000]), seed=chance.getrandbits(64) - 2**63,
    )  # fmt: skip


def test_choice_in_a_batch_is_the_choice_alone() -> None:
    chance = random.Random(0)
    torch.manual_seed(0)
    for _ in range(30):
        rows = chance.randint(2, 12)
        logits = torch.randn(rows, V) * chance.choice([0.01, 1, 5])
        params = [make(chance) for _ in range(rows)]
        positions = [chance.randrange(5000) for _ in range(rows)]
        together = choose(logits, params, positions)
        for i in range(rows):
            assert choose(logits[i : i + 1], [params[i]], [positions[i]]) == [together[i]]


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(temperature=1), 6),
        (SamplingParams(temperature=0.5), 6),
        (SamplingParams(temperature=1, top_k=3), 3),
        (SamplingParams(temperature=1, top_p=0.8), 3),
        (SamplingParams(temperature=2, top_k=4, top_p=0.7), 3),
    ],
)
def test_tokens_come_as_often_as_their_probability(params: SamplingParams, allowed: int) -> None:
    base = torch.log(torch.tensor([0.4, 0.25, 0.2, 0.1, 0.04, 0.01]))
    probabilities = torch.softmax(base / params.temperature, -1)
    if params.top_k:
        probabilities[params.top_k :] = 0
        probabilities /= probabilities.sum()
    keep = (probabilities.cumsum(-1) - probabilities) < params.top_p
    probabilities = torch.where(keep, probabilities, 0)
    probabilities /= probabilities.sum()
    assert int((probabilities > 0).sum()) == allowed
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    logits = base[order].repeat(20_000, 1)
    seeds = [
        SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, seed=s) for s in range(4)
    ]
    tokens = choose(logits, seeds * 5000, [i // 4 for i in range(20_000)])
    counts = Counter(int(order[token]) for token in tokens if token is not None)
    for token in range(6):
        expected = float(probabilities[token])
        assert abs(counts[token] / 20_000 - expected) <= 4 * math.sqrt(expected * (1 - expected) / 20_000)


def test_numbers_of_seeds_and_positions_are_even_and_unrelated() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.012
    neighbours = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(numbers)) / len(numbers)
    assert abs(neighbours) < 0.004
    assert uniform(7, 3) != uniform(3, 7)
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)


def test_cold_is_greedy_and_hot_is_any_token() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.9, -3.0]])
    for heat in (0.0, 1e-300, 1e-5):
        assert choose(logits, [SamplingParams(temperature=heat, seed=3)], [1]) == [1]
    hot = {choose(logits, [SamplingParams(temperature=1e308, seed=s)], [1])[0] for s in range(60)}
    assert hot == {0, 1, 2, 3}


def test_rows_without_valid_numbers_say_so_and_harm_none() -> None:
    logits = torch.randn(5, V)
    logits[0, 3], logits[1, 4], logits[2] = float("nan"), float("inf"), float("-inf")
    logits[3, 10:] = float("-inf")  # Never, which is allowed.
    params = [SamplingParams(temperature=1, top_p=0.9, seed=s) for s in range(5)]
    tokens = choose(logits, params, [1] * 5)
    assert tokens[:3] == [None] * 3
    assert tokens[3] is not None
    assert tokens[3] < 10
    assert tokens[4] == choose(logits[4:], params[4:], [1])[0]


def test_a_token_that_can_never_come_never_comes() -> None:
    logits = torch.full((1, V), float("-inf"))
    logits[0, 500] = 0.0
    for top_k, top_p in ((0, 1.0), (0, 0.5), (300, 1.0), (999, 0.999)):
        for seed in range(50):
            params = SamplingParams(temperature=1e300, top_k=top_k, top_p=top_p, seed=seed)
            assert choose(logits, [params], [seed]) == [500]
