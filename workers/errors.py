"""Errors of the worker side. Each class is a sentence and carries the code its generation fails with."""

from __future__ import annotations

from typing import ClassVar

from chatproject.contract.errors import Failure


class WorkerError(Exception):
    """Something the worker side knows how to name."""

    code: ClassVar[Failure] = Failure.ENGINE_ERROR


class RequestRejected(WorkerError):
    """The model cannot take this request, now or later."""

    code = Failure.REJECTED


class OutOfBlocks(WorkerError):
    """The cache has fewer free blocks than the sequence needs."""


class OutOfMemory(WorkerError):
    """The device has too little memory for this step; a smaller one may do."""


class ModelLoadError(WorkerError):
    """The model directory is missing, damaged, or of a kind that is not loaded (pickle, remote code)."""


class BadNumbers(WorkerError):
    """The model computed no valid number for a row."""

    code = Failure.NUMERICAL


class FatalEngineError(WorkerError):
    """The process cannot compute any more (a sticky device error, a step that hangs); it must be started again."""


class Expired(WorkerError):
    """The generation waited longer than it may, and has ended without a run."""

    code = Failure.EXPIRED

    def __init__(self, generation_id: str) -> None:
        self.generation_id = generation_id
        super().__init__(generation_id)


class NotUnderstood(WorkerError):
    """The request is of a version that this worker does not read; it waits again."""

    def __init__(self, generation_id: str, why: object) -> None:
        self.generation_id = generation_id
        super().__init__(str(why))
