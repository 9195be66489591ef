"""Penalties, biases and min-p give the probabilities that transformers' own processors give, whoever is beside them."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as peers

from chatproject.contract.messages import SamplingParams
from workers.engine.interfaces import Row
from workers.model import sampler
from workers.model.logprobs import logprobs
from workers.model.penalties import Penalties

V = 500


def make(max_rows: int = 8) -> Penalties:
    return Penalties(vocab_size=V, max_rows=max_rows, device=torch.device("cpu"))


def row(history: list[int], num_prompt: int, end: int | None = None, **wishes: Any) -> Row:
    """The last token of ``history``, or of its first ``end`` tokens, decodes."""
    end, params = end or len(history), SamplingParams(**wishes)
    return Row(
        sequence_id=str(id(history)), tokens=(history[end - 1],), start=end - 1, block_table=(), sampling=params,
        history=history if params.is_penalised else None, num_prompt=num_prompt,
    )  # fmt: skip


def applied(penalties: Penalties, logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    changed = logits.clone()
    penalties.apply(changed, rows)
    return changed


def random_wishes(chance: random.Random) -> dict[str, Any]:
    biased = chance.sample(range(V), chance.choice([0, 0, 1, 30]))
    return {
        "repetition_penalty": chance.choice([1.0, 1.3, 0.7]), "presence_penalty": chance.choice([0.0, 0.8, -1.0]),
        "frequency_penalty": chance.choice([0.0, 0.3, -0.5]),
        "logit_bias": tuple((token, chance.uniform(-5, 5)) for token in biased),
    }  # fmt: skip


def expected(logits: torch.Tensor, history: list[int], num_prompt: int, wishes: dict[str, Any]) -> torch.Tensor:
    """What transformers computes for one row; it has no presence and frequency, so these are written out."""
    ids, scores = torch.tensor([history]), logits.unsqueeze(0).clone()
    if wishes["logit_bias"]:
        scores = peers.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in wishes["logit_bias"]])(
            ids, scores
        )
    scores = peers.RepetitionPenaltyLogitsProcessor(wishes["repetition_penalty"])(ids, scores)
    for token, count in Counter(history[num_prompt:]).items():
        scores[0, token] -= wishes["presence_penalty"] + count * wishes["frequency_penalty"]
    return scores[0]


def test_logits_are_those_of_transformers_step_by_step() -> None:
    chance = random.Random(1)
    torch.manual_seed(1)
    penalties = make()
    rows: list[tuple[list[int], int, dict[str, Any], SamplingParams]] = []
    for _ in range(120):
        # Sequences come, go on by a token, pause, and go.
        if len(rows) < 8 and chance.random() < 0.5:
            history = [chance.randrange(40) for _ in range(chance.randint(1, 90))]
            wishes = random_wishes(chance)
            rows.append(
                (history, len(history) - chance.choice([0, 0, len(history) // 3]), wishes, SamplingParams(**wishes))
            )
        elif rows and chance.random() < 0.1:
            rows.pop(chance.randrange(len(rows)))
        step = chance.sample(rows, chance.randint(0, len(rows)))
        logits = torch.randn(len(step), V) * 4
        changed = applied(penalties, logits, [row(history, prompt, **wishes) for history, prompt, wishes, _ in step])
        for place, (history, prompt, wishes, _) in enumerate(step):
            torch.testing.assert_close(changed[place], expected(logits[place], history, prompt, wishes))
            history.append(chance.randrange(40))


@pytest.mark.parametrize(
    "wishes",
    [
        {"min_p": 0.05}, {"min_p": 0.3, "top_k": 20}, {"min_p": 0.01, "top_p": 0.8}, {"min_p": 1.0},
        {"min_p": 0.02, "temperature": 2.0}, {"repetition_penalty": 1.4, "min_p": 0.1, "top_k": 50, "top_p": 0.95},
    ],
)  # fmt: skip
def test_probabilities_are_those_of_transformers(wishes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the weights that the walk gets, and compare them with the softmax of transformers' chain."""
    torch.manual_seed(2)
    logits, history = torch.randn(1, V) * 3, [3, 5, 5, 9]
    params = SamplingParams(**({"temperature": 0.7} | wishes))
    seen: list[torch.Tensor] = []
    walk = sampler._walk
    monkeypatch.setattr(sampler, "_walk", lambda weights, chance: seen.append(weights) or walk(weights, chance))
    changed = applied(make(), logits, [row(history, 2, **wishes)])
    sampler.choose(changed, [params], [4])
    order = sampler.best(changed, seen[0].shape[1])[1][0]
    probabilities = torch.zeros(V, dtype=torch.float64)
    probabilities[order] = seen[0][0] / seen[0][0].sum()

    ids, scores = torch.tensor([history]), logits.double()
    scores = peers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    scores = peers.TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k:
        scores = peers.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = peers.TopPLogitsWarper(params.top_p)(ids, scores)
    scores = peers.MinPLogitsWarper(params.min_p)(ids, scores)
    torch.testing.assert_close(probabilities, scores.softmax(-1)[0], rtol=1e-5, atol=1e-9)
    assert int((probabilities > 0).sum()) == int((scores > -torch.inf).sum())


def test_min_p_lower_than_any_token_looks_beyond_the_head() -> None:
    logits, params = torch.zeros(1, 3000), [SamplingParams(temperature=1, min_p=0.5, seed=s) for s in range(60)]
    logits[0, 2000:] = -9
    tokens = sampler.choose(logits.repeat(60, 1), params, [1] * 60)
    assert max(token or 0 for token in tokens) > 1000
    assert max(token or 0 for token in tokens) < 2000


def test_rows_without_wishes_are_left_alone() -> None:
    logits, history = torch.randn(3, V), [1, 2, 3]
    rows = [row(history, 1), row(history, 1, presence_penalty=2.0), row(history, 1, top_k=5, min_p=0.1, logprobs=3)]
    changed = applied(make(), logits, rows)
    assert torch.equal(changed[[0, 2]], logits[[0, 2]])
    assert (changed[1] != logits[1]).nonzero().view(-1).tolist() == [2, 3]
    only_prompt = row([1, 2, 3], 3, presence_penalty=2.0, frequency_penalty=2.0)
    assert torch.equal(applied(make(), logits[:1], [only_prompt]), logits[:1])


def test_counts_are_of_the_history_whatever_came_before() -> None:
    """Run again, back, forth and resumed: a row's outcome is that of a sampler that sees it for the first time."""
    chance, penalties = random.Random(3), make(max_rows=1)
    histories = [[chance.randrange(30) for _ in range(200)] for _ in range(4)]
    logits = torch.randn(1, V)
    for _ in range(200):
        history = chance.choice(histories)
        asked = row(history, 10, end=chance.randint(1, 200), repetition_penalty=1.5, frequency_penalty=0.1)
        assert torch.equal(applied(penalties, logits, [asked]), applied(make(), logits, [asked]))


def test_a_history_that_takes_the_place_of_a_dead_one_is_counted_anew() -> None:
    penalties, logits = make(max_rows=2), torch.randn(1, V)
    for number in range(50):
        history = [number, number + 1]
        asked = row(history, 0, presence_penalty=1.0)
        changed = applied(penalties, logits, [asked])
        assert (changed != logits).nonzero()[:, 1].tolist() == history
        del history, asked


def test_a_token_that_never_comes_stays_so_and_what_is_no_number_stays_none() -> None:
    logits = torch.randn(2, V)
    logits[0, 7], logits[1, 7] = -torch.inf, torch.nan
    wishes: dict[str, Any] = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "logit_bias": ((7, 100.0),)}
    changed = applied(make(), logits, [row([7, 8], 0, **wishes), row([7, 8], 0, **wishes)])
    assert changed[0, 7] == -torch.inf
    assert sampler.choose(changed, [SamplingParams()] * 2, [2, 2])[1] is None


def test_logprobs_are_the_models_own() -> None:
    torch.manual_seed(4)
    logits = torch.randn(3, V)
    logits[1, 5] = -torch.inf
    told = logprobs(logits, [9, 5, 11], [0, 3, 20])
    whole = logits.double().log_softmax(-1)
    assert [item.token for item in told] == [9, 5, 11]
    assert told[0].logprob == pytest.approx(float(whole[0, 9]), abs=1e-6)
    assert told[1].logprob == -9999
    assert [len(item.top) for item in told] == [0, 3, 20]
    values, tokens = whole[2].topk(20)
    assert [token for token, _ in told[2].top] == tokens.tolist()
    assert [value for _, value in told[2].top] == pytest.approx(values.tolist(), abs=1e-6)
