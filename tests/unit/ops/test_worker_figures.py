"""An operator's view of the engines: what each worker says comes out in Prometheus' own types."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from chatproject.contract.messages import WorkerStatus
from chatproject.ops.worker_figures import WorkerFigures


def by_slot_and_kind(family: Metric) -> dict[tuple[str, str], float]:
    return {(sample.labels["slot"], sample.labels["kind"]): sample.value for sample in family.samples}


def test_every_figure_has_its_type_and_its_worker() -> None:
    status = WorkerStatus(
        slot="w1", boot="b", model="demo", state="ready", slots=32, running=3, waiting=1, steps=500, rows_per_step=2.5,
        decode_steps=400, tokens=1000, prompt_tokens=300, cached_tokens=200, preemptions=2, kv_blocks=64, kv_used=0.25,
        up_s=100.0, load_s=4.0, busy_s=16.0, idle_s=80.0,
    )  # fmt: skip
    registry = CollectorRegistry()
    registry.register(WorkerFigures([status, WorkerStatus.from_json(status.to_json().replace('"w1"', '"w2"'))]))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert {family.type for name, family in families.items() if name.endswith("steps")} == {"counter"}
    assert families["chat_worker_kv_used_ratio"].type == "gauge"
    seconds = by_slot_and_kind(families["chat_worker_seconds"])
    assert seconds["w1", "busy"] == 16.0
    assert sum(value for (slot, _), value in seconds.items() if slot == "w2") == 100.0
    assert by_slot_and_kind(families["chat_worker_tokens"])["w2", "cached"] == 200
    assert all(len(family.samples) >= 2 for family in families.values())


def test_a_worker_of_a_newer_version_is_still_understood() -> None:
    status = WorkerStatus(
        slot="w1", boot="b", model="demo", state="ready", slots=1, running=0, steps=0, rows_per_step=0.0
    )  # fmt: skip
    newer = status.to_json()[:-1] + ',"colour":"blue"}'
    assert WorkerStatus.from_json(newer) == status
