"""How a model is sampled when the user leaves it open: as its own generation_config.json says.

A hub id has no directory here; then, and for what the file leaves open, the service's own defaults hold.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What is used where the user says nothing."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@functools.lru_cache(maxsize=32)
def sampling_defaults(directory: str) -> SamplingDefaults:
    """Return the defaults of the model in ``directory`` (empty: the bundled one). Never raises."""
    path = (Path(directory) if directory else settings.BUNDLED_MODEL_DIR) / "generation_config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if fields.get("do_sample") is False:
            return SamplingDefaults(temperature=0.0)
        if not fields.get("do_sample"):
            return SamplingDefaults()
        own = SamplingDefaults(
            temperature=min(2.0, max(0.0, float(fields.get("temperature") or 0.7))),
            top_p=float(fields.get("top_p") or 1.0),
            top_k=int(fields.get("top_k") or 0),
            min_p=float(fields.get("min_p") or 0.0),
            repetition_penalty=float(fields.get("repetition_penalty") or 1.0),
        )
        is_possible = 0 < own.top_p <= 1 and own.top_k >= 0 and 0 <= own.min_p <= 1 and own.repetition_penalty > 0
        return own if is_possible else SamplingDefaults()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is left out: %s", path, error)
        return SamplingDefaults()
