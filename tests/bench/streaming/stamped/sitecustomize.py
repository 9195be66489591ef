"""For the streaming benchmark: every word of the fake engine is the time when it was made, and costs next to nothing.

So a reader on the same machine knows how long each token was on its way. All sides of the benchmark run this engine.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from after_import import change  # type: ignore[import-not-found]


def _step(self: Any, rows: Any) -> Any:
    """At the rate that is asked for, whatever the rows cost: sleep until a step is due, not for its length."""
    now = time.monotonic()
    due = max(now, getattr(self, "due_s", now) + self._step_s)
    if due > now:
        time.sleep(due - now)
    self.due_s = due
    for row in rows:
        self._write(row)
    return [self._result(row) for row in rows]


def _tell_wait(text_stream: type[Any]) -> None:
    """Let an answer's first word say, after a plus, how many microseconds the engine had the request by then."""
    begin, push = text_stream.__init__, text_stream.push

    def begin_now(self: Any, *args: Any) -> None:
        begin(self, *args)
        self.begun_ns = time.monotonic_ns()

    def push_and_tell(self: Any, token: int) -> Any:
        piece = push(self, token)
        if self.begun_ns:
            now = time.monotonic_ns()
            piece = piece._replace(text=f"{now}+{(now - self.begun_ns) // 1000} ")
            self.begun_ns = 0
        return piece

    text_stream.__init__, text_stream.push = begin_now, push_and_tell


def _stamp(module: ModuleType) -> None:
    module.word_of = lambda token: f"{time.monotonic_ns()} "
    # The words do not depend on the history, so it need not be read again at each step.
    module.FakeRunner._next = lambda self, row: module._FIRST_WORD + row.start % module.NUM_WORDS
    _tell_wait(module.FakeTextStream)
    small = module.FakeRunner.__init__

    def large(self: Any, **fields: Any) -> None:
        small(self, **{"num_blocks": 1 << 17, **fields})

    module.FakeRunner.__init__ = large
    module.FakeRunner.step = _step


change({"workers.fakes": _stamp})
