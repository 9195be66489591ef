"""What the workers say of their engines, in Prometheus' form. Counters start over with each boot, as rate() expects.

Of one worker, seconds of load, idle and busy are its wall time; busy is what its generations were charged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chatproject.contract.messages import WorkerStatus

_Read = Callable[[WorkerStatus], float]
_GAUGES: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("chat_worker_running", "Generations claimed and not ended.", lambda worker: worker.running),
    ("chat_worker_waiting", "Of these, in no step yet.", lambda worker: worker.waiting),
    ("chat_worker_slots", "Generations it runs at once.", lambda worker: worker.slots),
    ("chat_worker_rows_per_step", "Mean rows of a decode step.", lambda worker: worker.rows_per_step),
    ("chat_worker_up_seconds", "Since its boot.", lambda worker: worker.up_s),
    ("chat_worker_kv_blocks", "Blocks of its cache.", lambda worker: worker.kv_blocks),
    ("chat_worker_kv_used_ratio", "Part of them held by running sequences.", lambda worker: worker.kv_used),
)
_COUNTERS: Final[tuple[tuple[str, str, _Read], ...]] = (
    ("chat_worker_steps", "Engine steps.", lambda worker: worker.steps),
    ("chat_worker_decode_steps", "Engine steps with at least one decode.", lambda worker: worker.decode_steps),
    ("chat_worker_preemptions", "Sequences sent back to wait.", lambda worker: worker.preemptions),
)
_TOKENS: Final[tuple[tuple[str, _Read], ...]] = (
    ("prompt", lambda worker: worker.prompt_tokens),
    ("cached", lambda worker: worker.cached_tokens),
    ("completion", lambda worker: worker.tokens),
)
_SECONDS: Final[tuple[tuple[str, _Read], ...]] = (
    ("load", lambda worker: worker.load_s),
    ("busy", lambda worker: worker.busy_s),
    ("idle", lambda worker: worker.idle_s),
)


class WorkerFigures(Collector):
    """The figures of the workers alive at one moment."""

    def __init__(self, workers: Sequence[WorkerStatus]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """Return one metric per figure, labelled by slot."""
        metric: GaugeMetricFamily | CounterMetricFamily
        for name, help_, read in _GAUGES:
            metric = GaugeMetricFamily(name, help_, labels=["slot"])
            for worker in self._workers:
                metric.add_metric([worker.slot], read(worker))
            yield metric
        for name, help_, read in _COUNTERS:
            metric = CounterMetricFamily(name, help_, labels=["slot"])
            for worker in self._workers:
                metric.add_metric([worker.slot], read(worker))
            yield metric
        yield self._by_kind("chat_worker_tokens", "Tokens of the engine.", _TOKENS)
        yield self._by_kind("chat_worker_seconds", "Wall time of the engine, by what it was spent on.", _SECONDS)

    def _by_kind(self, name: str, help_: str, kinds: Sequence[tuple[str, _Read]]) -> Metric:
        metric = CounterMetricFamily(name, help_, labels=["slot", "kind"])
        for worker in self._workers:
            for kind, read in kinds:
                metric.add_metric([worker.slot, kind], read(worker))
        return metric
