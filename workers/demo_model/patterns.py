"""Expand question patterns: ``[How do I|How can I] stop [it|this|]`` stands for six questions.

Knows brackets, alternatives and slots such as ``{x}``. Knows nothing of answers.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence

_GROUP = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def expand(pattern: str) -> list[str]:
    """Every question that the brackets allow, slots left as they are."""
    parts = _GROUP.split(pattern)
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return list(dict.fromkeys(_tidy("".join(combination)) for combination in itertools.product(*choices)))


def sample(pattern: str, rng: random.Random, slots: Mapping[str, Sequence[str]] | None = None) -> str:
    """One question; a slot named in ``slots`` is filled anew at each place where it stands."""
    text = _GROUP.sub(lambda match: rng.choice(match.group(1).split("|")), pattern)
    if slots:
        text = _SLOT.sub(lambda match: rng.choice(slots[match.group(1)]) if match.group(1) in slots else match[0], text)
    return _tidy(text)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip().replace(" ,", ",")
    return re.sub(r"\{(\w+)\}s\b", r"{\1}s", text)
