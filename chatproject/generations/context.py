"""How many tokens a text will be, on the web side: `tokenizers` and the model's tokenizer.json, never torch.

Where the web side has no tokenizer file (only the workers hold the model), the count is estimated from bytes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from django.conf import settings
from tokenizers import Tokenizer

from chatproject.contract.messages import Turn

log = logging.getLogger(__name__)
# No byte-level tokenizer makes more tokens than bytes; real text has about 4 bytes a token, rare scripts about 1.5.
ESTIMATED_BYTES_PER_TOKEN: Final = 3
DEFAULT_TURN_TOKENS: Final = 8
MANY_CHARACTERS: Final = 200_000
MOST_COUNTS: Final = 10_000  # texts, about 200 bytes each

_counts: dict[tuple[str, bytes], int] = {}  # tokens by the digest of a text


def count_tokens(directory: str, turns: Iterable[Turn], *, turn_tokens: int = DEFAULT_TURN_TOKENS) -> int:
    """Return how many prompt tokens ``turns`` take with the template around them."""
    tokenizer = _tokenizer(directory)
    total = turn_tokens  # the head of the answer
    for turn in turns:
        if tokenizer is None or len(turn.text) > MANY_CHARACTERS:
            total += len(turn.text.encode("utf-8", "replace")) // ESTIMATED_BYTES_PER_TOKEN + 1
        else:
            total += _count(directory, tokenizer, turn.text)
        total += turn_tokens
    return total


def _count(directory: str, tokenizer: Tokenizer, text: str) -> int:
    # Each message brings the whole conversation again, in a transaction that others wait for.
    key = (directory, hashlib.blake2b(text.encode(), digest_size=16).digest())
    count = _counts.get(key)
    if count is None:
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        if len(_counts) >= MOST_COUNTS:
            _counts.clear()
        _counts[key] = count
    return count


@functools.lru_cache(maxsize=8)
def _tokenizer(directory: str) -> Tokenizer | None:
    path = (Path(directory) if directory else settings.BUNDLED_MODEL_DIR) / "tokenizer.json"
    if not path.is_file():
        log.info("no tokenizer at %s: prompt tokens are estimated from bytes", path)
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # As the worker does: what a user wrote is text, even where it reads like a control token.
        tokenizer.encode_special_tokens = True
        return tokenizer
    except Exception as error:  # tokenizers raises plain Exception
        log.warning("tokenizer %s cannot be read (%s): prompt tokens are estimated from bytes", path, error)
        return None
