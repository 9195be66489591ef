"""Workers of other versions beside today's web, records and second worker: a deploy that is half done.

The first is newer: all that it writes carries one thing more than today's readers know. The third is the first version
there was: it reads requests that ask for nothing of what came since, and says less of itself.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

NEWER, OLDER = "w1", "w3"
_FIRST_WISHES: Final = frozenset({"temperature", "top_p", "top_k", "max_tokens", "seed", "stop"})
_FIRST_STATUS: Final = frozenset({"slot", "boot", "model", "state", "slots", "running", "steps", "rows_per_step"})

Spoil = Callable[[ModuleType], None]


def _slot() -> str:
    # Read late: a spare process is told its slot after its imports.
    return os.environ.get("CHAT_SLOT", "")


def _messages(module: ModuleType) -> None:
    for kind in (module.Usage, module.ModelStatus, module.WorkerStatus):
        kind.to_json = functools.wraps(kind.to_json)(_says_more_or_less(kind.to_json))
    read = module.GenerationRequest.from_json.__func__

    def read_as_ever(cls: Any, text: str | bytes) -> Any:
        wishes = set(json.loads(text).get("params", {}))
        if _slot() == OLDER and wishes - _FIRST_WISHES:
            raise module.ContractError(f"not a generation request: {sorted(wishes - _FIRST_WISHES)}")
        return read(cls, text)

    module.GenerationRequest.from_json = classmethod(read_as_ever)


def _says_more_or_less(say: Callable[[Any], str]) -> Callable[[Any], str]:
    def to_json(self: Any) -> str:
        fields = json.loads(say(self))
        if _slot() == NEWER:
            fields["of_tomorrow"] = {"x": 1}
        if _slot() == OLDER and "steps" in fields:
            fields = {name: value for name, value in fields.items() if name in _FIRST_STATUS}
        return json.dumps(fields)

    return to_json


def _frames(module: ModuleType) -> None:
    entry, wire = module.Frame.entry, module.Frame.wire

    def entry_of_tomorrow(self: Any) -> Any:
        return entry(self) | ({"of_tomorrow": "1"} if _slot() == NEWER else {})

    def wire_of_tomorrow(self: Any) -> Any:
        told = wire(self)
        if _slot() == NEWER:
            told = [*told, *([] if self.logprobs else [[]]), {"of_tomorrow": 1}]
        return told

    module.Frame.entry, module.Frame.wire = entry_of_tomorrow, wire_of_tomorrow


CHANGES: dict[str, Spoil] = {
    "chatproject.contract.messages": _messages,
    "chatproject.contract.frames": _frames,
}
