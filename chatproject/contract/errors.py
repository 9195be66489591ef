"""Codes of refusals and failures, and the one place where their texts for users live."""

from __future__ import annotations

import enum
from typing import Final


class ContractError(ValueError):
    """A message between processes does not have the agreed form."""


class Refusal(enum.StrEnum):
    """Why something was not accepted: nothing was stored, nothing charged."""

    BAD_FRAME = "bad_frame"
    BAD_PARAMS = "bad_params"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    CONTEXT_TOO_LONG = "context_too_long"
    NOT_FOUND = "not_found"
    CONVERSATION_BUSY = "conversation_busy"
    ID_REUSED = "id_reused"
    BAD_CURSOR = "bad_cursor"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    TOO_MANY_RUNNING = "too_many_running"
    QUEUE_FULL = "queue_full"
    MODEL_UNKNOWN = "model_unknown"
    UNAVAILABLE = "unavailable"


class Failure(enum.StrEnum):
    """Why an accepted generation ended without finishing."""

    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    NUMERICAL = "numerical"
    REJECTED = "rejected"
    ENGINE_ERROR = "engine_error"
    SHUTDOWN = "shutdown"


class FinishReason(enum.StrEnum):
    """Why an answer that counts as finished ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


REFUSAL_TEXT: Final[dict[Refusal, str]] = {
    Refusal.BAD_FRAME: "This message is not in the expected form.",
    Refusal.BAD_PARAMS: "A setting has a value that is not allowed.",
    Refusal.EMPTY_TEXT: "Write something first: the message is empty.",
    Refusal.TEXT_TOO_LONG: "The message is too long. Shorten it, or send it in parts.",
    Refusal.CONTEXT_TOO_LONG: "The message does not fit the model's context. Shorten it.",
    Refusal.NOT_FOUND: "There is no such conversation or answer here.",
    Refusal.CONVERSATION_BUSY: "This conversation is still answering. Wait for the answer, or stop it.",
    Refusal.ID_REUSED: "This message id was already used for another message. Send with a new id.",
    Refusal.BAD_CURSOR: "This answer has no such position. Resume from 0.",
    Refusal.RATE_LIMITED: "Too many requests. Try again in a moment.",
    Refusal.QUOTA_EXCEEDED: "Your plan's limit for today is used up.",
    Refusal.TOO_MANY_RUNNING: "Too many answers are being written for you. Wait for one to end, or stop one.",
    Refusal.QUEUE_FULL: "The queue is full. Try again in a moment.",
    Refusal.MODEL_UNKNOWN: "There is no such model for you.",
    Refusal.UNAVAILABLE: "The service cannot take this right now. Try again in a moment.",
}

FAILURE_TEXT: Final[dict[Failure, str]] = {
    Failure.EXPIRED: "The message waited too long for a free worker. Send it again.",
    Failure.QUARANTINED: "This message stopped the workers several times and was set aside. Change it, then retry.",
    Failure.NUMERICAL: "The model computed no valid number for this message. Retry with other settings.",
    Failure.REJECTED: "The model cannot take this message as it is. Shorten or change it.",
    Failure.ENGINE_ERROR: "The model had an error while answering. Try again.",
    Failure.SHUTDOWN: "The service was shut down before the answer was finished. Try again.",
}
