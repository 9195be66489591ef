"""The verdict as people read it."""

from __future__ import annotations

from tests.chaos.checker import Verdict
from tests.chaos.options import Options
from tests.chaos.planted.sitecustomize import DEFECTS

_EXAMPLES = 5


def text_of(verdict: Verdict, wanted: Options) -> str:
    """Return the table: what must be zero, then figures, then what broke it."""
    rows = [(name, "0" if not found else f"{len(found)}  BROKEN") for name, found in verdict.broken.items()]
    width = max(len(name) for name, _ in [*rows, *verdict.figures])
    lines = [f"| {name:<{width}} | {value}" for name, value in rows]
    lines += ["|" + "-" * (width + 2) + "|"] + [f"| {name:<{width}} | {value}" for name, value in verdict.figures]
    for name, found in verdict.broken.items():
        lines += [f"  {name}: {what}" for what in found[:_EXAMPLES]]
        if len(found) > _EXAMPLES:
            lines.append(f"  {name}: and {len(found) - _EXAMPLES} more")
    if verdict.void:
        lines.append(f"chaos: this run proves nothing: {verdict.void}")
    if wanted.defect:
        seen = [name for name in DEFECTS[wanted.defect][2] if verdict.broken.get(name)]
        lines.append(f"chaos: {wanted.defect} was {'caught by ' + ', '.join(seen) if seen else 'NOT CAUGHT'}")
    result = "every invariant held" if verdict.is_good else "FAILED"
    lines.append(f"chaos: {result}. Again: {wanted.again()}")
    return "\n".join(lines)
