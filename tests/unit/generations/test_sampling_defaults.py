"""What the user leaves open is chosen as the model's own generation_config.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatproject.generations.sampling_defaults import SamplingDefaults, sampling_defaults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"do_sample": true, "temperature": 0.6, "top_p": 0.8, "top_k": 20}',
            SamplingDefaults(temperature=0.6, top_p=0.8, top_k=20),
        ),
        ('{"do_sample": false, "temperature": 0.6}', SamplingDefaults(temperature=0.0)),
        ('{"eos_token_id": 0}', SamplingDefaults()),
        ('{"do_sample": true, "top_p": 7}', SamplingDefaults()),
        (
            '{"do_sample": true, "temperature": 0.7, "repetition_penalty": 1.05, "min_p": 0.1}',
            SamplingDefaults(repetition_penalty=1.05, min_p=0.1),
        ),
        ('{"do_sample": true, "top_k": "many"}', SamplingDefaults()),
        ('{"do_sample": true, "repetition_penalty": -1}', SamplingDefaults()),
        ("[]", SamplingDefaults()),
        ("{", SamplingDefaults()),
    ],
)
def test_the_models_own_file_decides(tmp_path: Path, text: str, expected: SamplingDefaults) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert sampling_defaults(str(tmp_path)) == expected


def test_a_hub_id_has_the_services_defaults() -> None:
    assert sampling_defaults("someone/some-model") == SamplingDefaults()


def test_the_bundled_model_answers_greedily() -> None:
    weights = Path(__file__).parents[3] / "workers" / "demo_model" / "weights"
    assert json.loads((weights / "generation_config.json").read_text())["do_sample"] is False
    assert sampling_defaults("") == SamplingDefaults(temperature=0.0)
