"""The engine's thread: it wakes at once, hears every word, and says when it cannot go on. Real threads, no sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.unit.engine.harness import Record, alone, request
from workers.engine.engine import Engine
from workers.engine.interfaces import Row, RowResult, StepOutput
from workers.engine.loop import EngineLoop
from workers.errors import FatalEngineError, RequestRejected
from workers.fakes import FakeRunner

WAIT_S = 10.0
PROMPT = (1, 2, 3)


class _Ears(Record):
    """A record that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self.threads: set[str] = set()

    def on_step(self, outputs: Sequence[StepOutput]) -> None:
        with self._changed:
            super().on_step(outputs)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def until(self, is_so: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_so, WAIT_S), "it did not happen"


class _Gate(FakeRunner):
    """A runner whose steps the test lets through."""

    def __init__(self) -> None:
        super().__init__(step_ms=0)
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None

    def step(self, rows: Sequence[Row]) -> Sequence[RowResult]:
        self.entered.release()
        assert self.open.acquire(timeout=WAIT_S)
        if self.error is not None:
            raise self.error
        return super().step(rows)

    def wait_for_step(self) -> None:
        assert self.entered.acquire(timeout=WAIT_S)


class _Fatal:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.was_called = threading.Event()

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
        self.was_called.set()


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[EngineLoop, _Ears, _Fatal]]]:
    loops: list[tuple[EngineLoop, FakeRunner]] = []

    def _make(runner: FakeRunner, **options: float) -> tuple[EngineLoop, _Ears, _Fatal]:
        ears, fatal = _Ears(), _Fatal()
        loop = EngineLoop(runner, listener=ears, on_fatal=fatal, **options)  # type: ignore[arg-type]
        loop.start()
        loops.append((loop, runner))
        return loop, ears, fatal

    yield _make
    for loop, runner in loops:
        if isinstance(runner, _Gate):
            runner.open.release(1_000)
        loop.stop(WAIT_S)
        assert not loop.is_alive


def test_requests_of_many_threads_are_all_answered_in_the_engine_thread(make: Callable[..., tuple]) -> None:
    loop, ears, _ = make(FakeRunner(step_ms=0))
    prompts = {f"s{thread}-{index}": (thread, index) for thread in range(4) for index in range(25)}

    def submit(thread: int) -> None:
        for index in range(25):
            loop.submit(request(f"s{thread}-{index}", (thread, index), 10))

    threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    ears.until(lambda: len(ears.finish) == 100)
    assert all(ears.tokens[id_] == list(alone(prompt, 10)) for id_, prompt in prompts.items())
    assert ears.threads == {"engine"}
    assert loop.steps == loop.stats().steps >= 10


def test_an_idle_engine_waits_without_steps_and_wakes_for_a_request(make: Callable[..., tuple]) -> None:
    loop, ears, _ = make(FakeRunner(step_ms=0))
    for index in range(20):
        loop.submit(request(f"s{index}", PROMPT, 3))
        ears.until(lambda index=index: f"s{index}" in ears.finish)
    assert loop.steps == 60
    assert loop.stats().idle_s > 0


def test_a_cancel_while_a_step_runs_ends_with_that_step(make: Callable[..., tuple]) -> None:
    runner = _Gate()
    loop, ears, _ = make(runner)
    loop.submit(request("a", PROMPT, 100))
    runner.wait_for_step()
    loop.cancel("a")
    runner.open.release()
    ears.until(lambda: "a" in ears.finish)
    assert ears.finish["a"].reason == "cancelled"
    assert ears.tokens["a"] == list(alone(PROMPT, 1))
    assert loop.steps == 1


def test_nothing_is_heard_of_a_dropped_sequence_even_from_the_step_that_runs(make: Callable[..., tuple]) -> None:
    runner = _Gate()
    loop, ears, _ = make(runner)
    loop.submit(request("a", PROMPT, 1))
    loop.submit(request("mate", PROMPT, 2))
    runner.wait_for_step()
    loop.drop("a")
    runner.open.release(2)
    ears.until(lambda: "mate" in ears.finish)
    assert "a" not in ears.tokens


def test_a_dropped_sequence_can_come_back_at_once(make: Callable[..., tuple]) -> None:
    """A generation handed back and claimed again by the same worker."""
    runner = _Gate()
    loop, ears, _ = make(runner)
    loop.submit(request("a", PROMPT, 1))
    runner.wait_for_step()
    loop.drop("a")
    loop.submit(request("a", (7, 7), 2))
    runner.open.release(3)
    ears.until(lambda: "a" in ears.finish)
    assert ears.tokens["a"] == list(alone((7, 7), 2))


def test_an_id_that_lives_is_refused_and_free_again_after_its_end(make: Callable[..., tuple]) -> None:
    runner = _Gate()
    loop, ears, _ = make(runner)
    loop.submit(request("a", PROMPT, 1))
    with pytest.raises(RequestRejected):
        loop.submit(request("a", PROMPT, 1))
    runner.open.release(2)
    ears.until(lambda: "a" in ears.finish)
    del ears.finish["a"]
    loop.submit(request("a", PROMPT, 1))
    ears.until(lambda: "a" in ears.finish)


def test_a_step_that_hangs_is_said(make: Callable[..., tuple]) -> None:
    runner = _Gate()
    loop, _, fatal = make(runner, hang_s=0.05)
    loop.submit(request("a", PROMPT, 1))
    assert fatal.was_called.wait(WAIT_S)
    assert isinstance(fatal.errors[0], FatalEngineError)
    assert len(fatal.errors) == 1


def test_an_engine_that_hangs_before_its_step_is_said(make: Callable[..., tuple], monkeypatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(Engine, "add", lambda self, request: goes_on.wait(WAIT_S))
    loop, _, fatal = make(FakeRunner(step_ms=0), hang_s=0.05)
    loop.submit(request("a", PROMPT, 1))
    is_said = fatal.was_called.wait(WAIT_S)
    goes_on.set()
    assert is_said


def test_an_engine_without_work_does_not_count_as_hanging(make: Callable[..., tuple]) -> None:
    loop, ears, fatal = make(FakeRunner(step_ms=0), hang_s=0.02)
    assert not fatal.was_called.wait(0.1)
    loop.submit(request("a", PROMPT, 1))
    ears.until(lambda: "a" in ears.finish)


def test_a_fatal_error_of_the_runner_is_said_and_ends_the_loop(make: Callable[..., tuple]) -> None:
    runner = _Gate()
    loop, ears, fatal = make(runner)
    runner.error = FatalEngineError("sticky")
    loop.submit(request("a", PROMPT, 1))
    runner.open.release()
    assert fatal.was_called.wait(WAIT_S)
    assert fatal.errors == [runner.error]
    assert not ears.finish


def test_stop_ends_after_the_step_that_runs(make: Callable[..., tuple]) -> None:
    runner = _Gate()
    loop, ears, _ = make(runner)
    loop.submit(request("a", PROMPT, 100))
    runner.wait_for_step()
    runner.open.release()
    ears.until(lambda: "a" in ears.tokens)
    runner.open.release(1_000)
    loop.stop(WAIT_S)
    assert not loop.is_alive
    assert "a" not in ears.finish or len(ears.tokens["a"]) == 100
