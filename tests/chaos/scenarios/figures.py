"""What a scenario has measured, beside its goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    seen: str
    goal: str = ""
    is_met: bool = True


def at_most(name: str, values: Sequence[float], quantile: float, limit: float, unit: str = "s") -> Figure:
    """Judge a quantile of measurements; none at all is no success."""
    seen = quantile_of(values, quantile)
    word = "max" if quantile == 1 else f"p{quantile * 100:.0f}"
    return Figure(
        name=f"{name}, {word} of {len(values)}", seen=f"{seen:.2f} {unit}" if values else "-",
        goal=f"<= {limit:g} {unit}", is_met=bool(values) and seen <= limit,
    )  # fmt: skip


def none_of(name: str, found: Sequence[str]) -> Figure:
    """Judge what must not be; the first examples are shown."""
    return Figure(name=name, seen=f"{len(found)} {'; '.join(found[:3])}".strip(), goal="0", is_met=not found)


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """Return a value that so many are at or below; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)] if ordered else 0.0


def text_of(figures: Sequence[Figure]) -> str:
    """Return the table."""
    width = max(len(figure.name) for figure in figures)
    return "\n".join(
        f"| {figure.name:<{width}} | {figure.seen} | {figure.goal}{'' if figure.is_met else '  MISSED'}"
        for figure in figures
    )
