"""Say how likely the model found the chosen tokens, and which it found likeliest.

These are the model's own numbers: before bias, penalties, temperature and cuts. Knows nothing of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.interfaces import Logprob
from workers.model.sampler import best

_NEVER = -9999.0  # for a token that cannot come; JSON has no infinity


# B rows, V vocabulary
def logprobs(logits: Tensor, tokens: Sequence[int], num_top: Sequence[int]) -> list[Logprob]:
    """Return what the model says of each row's token, with its ``num_top`` likeliest ones. ``logits`` are (B, V)."""
    wide = logits.double()
    whole = wide.logsumexp(-1, keepdim=True)  # (B, 1)
    chosen = (wide.gather(-1, torch.tensor(tokens, device=logits.device).unsqueeze(-1)) - whole).squeeze(-1).tolist()
    most = min(max(num_top), logits.shape[1])
    values, order = best(wide, most) if most else (wide[:, :0], wide[:, :0].long())
    # Rounded, because sums over a row may differ in the last places with the number of rows.
    tops = zip((values - whole).tolist(), order.tolist(), strict=True)
    return [
        Logprob(token, _told(own), tuple((other, _told(value)) for value, other in zip(*top, strict=True))[:count])
        for token, own, top, count in zip(tokens, chosen, tops, num_top, strict=True)
    ]


def _told(value: float) -> float:
    return round(max(value, _NEVER), 6)
