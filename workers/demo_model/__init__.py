"""The bundled demo model: how it is made, its data, and its 4-bit weights."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
