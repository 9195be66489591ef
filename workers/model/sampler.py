"""Choose the next token of each row.

The choice depends on (logits, parameters, seed, position) alone: one random number per (seed, position) from a counter,
no generator with a state. So it is the same alone, in any batch, and after a resume. Knows nothing of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from chatproject.contract.messages import SamplingParams

_MASK = (1 << 64) - 1
_GREEDY_BELOW = 1e-4
_HOTTEST = 1e4  # beyond, all tokens are as good as equally likely
_HEAD = 256  # tokens looked at first when the tail is cut; most cuts end within


# B rows, V vocabulary, K tokens looked at
def choose(logits: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int | None]:
    """Return a token per row of ``logits`` (B, V), or None where a row has no valid number.

    ``positions`` are those that the chosen tokens will take.
    """
    best, greedy = logits.max(dim=-1)  # NaN wins a maximum, so this sees NaN and +inf; -inf means "never"
    # One word from the device: each one waits for it.
    found = torch.where(torch.isfinite(best), greedy, -1).tolist()
    is_valid = [token >= 0 for token in found]
    tokens: list[int | None] = [token if token >= 0 else None for token in found]
    whole: list[int] = []
    cut: list[int] = []  # by top_k, top_p or min_p
    for index, item in enumerate(params):
        if is_valid[index] and item.temperature >= _GREEDY_BELOW and item.top_k != 1:
            is_cut = item.top_p < 1 or 0 < item.top_k < logits.shape[1] or item.min_p > 0
            (cut if is_cut else whole).append(index)
    if whole:
        _fill(tokens, whole, _choose_whole(logits[whole], *_numbers(whole, params, positions, logits.device)))
    if cut:
        _fill(tokens, cut, _choose_cut(logits[cut], cut, params, positions))
    return tokens


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to a seed and a position.

    Two rounds of the finaliser of SplitMix64 (Steele, Lea and Flood 2014) over a counter.
    """
    return (_mix(_mix(seed & _MASK) + position * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mix(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def _choose_whole(logits: Tensor, heat: Tensor, chance: Tensor) -> list[int]:
    """Walk the cumulative distribution in the order of the vocabulary."""
    return _walk(_weights(logits, heat), chance)


def _choose_cut(
    logits: Tensor, rows: Sequence[int], params: Sequence[SamplingParams], positions: Sequence[int]
) -> list[int]:
    """Keep the top_k best, of them the fewest that hold top_p, of them what min_p lets stay; walk it, best first."""
    heat, chance = _numbers(rows, params, positions, logits.device)
    vocabulary = logits.shape[1]
    top_k = torch.tensor([min(params[row].top_k or vocabulary, vocabulary) for row in rows], device=logits.device)
    top_p = torch.tensor([params[row].top_p for row in rows], dtype=torch.float64, device=logits.device).unsqueeze(1)
    # The best has weight 1, so this is the least weight that stays.
    min_p = torch.tensor([params[row].min_p for row in rows], dtype=torch.float64, device=logits.device).unsqueeze(1)
    # All of the mass, when top_k does not limit what top_p counts.
    total = _weights(logits, heat).sum(-1, keepdim=True)  # (B, 1)
    size = min(max([_HEAD, *(params[row].top_k for row in rows)]), vocabulary)
    while True:
        head, order = best(logits, size)  # (B, K)
        weights = _weights(head, heat)
        last = weights[:, -1:]
        weights = torch.where(torch.arange(size, device=logits.device) < top_k.unsqueeze(1), weights, 0)
        # Running sums, for a plain sum rounds differently when other rows make this one wider.
        sums = weights.cumsum(-1)
        mass = torch.where(top_k.unsqueeze(1) < vocabulary, sums[:, -1:], total)
        before = sums - weights
        is_whole = (before[:, -1:] >= top_p * mass) | (top_k.unsqueeze(1) <= size) | (last < min_p)
        if size == vocabulary or bool(is_whole.all()):
            break
        size = min(size * 16, vocabulary)
    # The best token stays whatever top_p is.
    weights = torch.where(((before < top_p * mass) & (weights >= min_p)) | (before == 0), weights, 0)
    places = _walk(weights, chance)
    return order[torch.arange(len(rows), device=logits.device), torch.tensor(places, device=logits.device)].tolist()


def best(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the ``size`` best of each row, best first, and their tokens; equals in the order of the vocabulary."""
    if size == logits.shape[1]:
        return logits.sort(dim=-1, descending=True, stable=True)
    # topk alone may order equals by how many rows there are; sorted by token first, a stable sort settles it.
    values, tokens = logits.topk(size, dim=-1)
    tokens = tokens.sort(dim=-1).values
    values, places = logits.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
    return values, tokens.gather(-1, places)


def _weights(logits: Tensor, heat: Tensor) -> Tensor:
    """exp((logits - best) / temperature) in float64: the best is 1, so nothing overflows."""
    wide = logits.double()
    return torch.exp((wide - wide.amax(-1, keepdim=True)) / heat)


def _walk(weights: Tensor, chance: Tensor) -> list[int]:
    """Return the first place where the running sum passes ``chance`` (B, 1) of the whole, a place that has weight."""
    sums = weights.cumsum(-1)
    places = torch.searchsorted(sums, chance * sums[:, -1:], right=True).squeeze(-1)  # (B,)
    # Rounding may leave the target at the very end: take the last place that has weight.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1)
    return torch.minimum(places, last).tolist()


def _numbers(
    rows: Sequence[int], params: Sequence[SamplingParams], positions: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return temperatures and random numbers of ``rows``, each (B, 1) float64."""
    heat = [min(params[row].temperature, _HOTTEST) for row in rows]
    chance = [uniform(params[row].seed, positions[row]) for row in rows]
    both = torch.tensor([heat, chance], dtype=torch.float64, device=device).unsqueeze(-1)
    return both[0], both[1]


def _fill(tokens: list[int | None], rows: Sequence[int], chosen: Sequence[int]) -> None:
    for row, token in zip(rows, chosen, strict=True):
        tokens[row] = token


def is_usable(params: SamplingParams, vocab_size: int) -> bool:
    """Say whether the numbers can be computed with at all."""
    return (
        math.isfinite(params.temperature)
        and params.temperature >= 0
        and 0 < params.top_p <= 1
        and params.top_k >= 0
        and 0 <= params.min_p <= 1
        and 0 < params.repetition_penalty < math.inf
        and math.isfinite(params.presence_penalty)
        and math.isfinite(params.frequency_penalty)
        and all(0 <= token < vocab_size and math.isfinite(bias) for token, bias in params.logit_bias)
        and len({token for token, _ in params.logit_bias}) == len(params.logit_bias)
        and (params.logprobs is None or params.logprobs >= 0)
    )
