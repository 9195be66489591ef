"""Errors of the API, in OpenAI's shape on `/v1` and in a flat one on the plain routes.

The one place that says which refusal is which HTTP status, and whether it makes sense to try again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from django.http import JsonResponse

from chatproject.accounts.errors import Refused
from chatproject.contract.errors import FAILURE_TEXT, Failure, Refusal
from chatproject.contract.frames import End


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    status: int
    type: str
    code: str | None = None
    may_retry: bool | None = None  # None: the client's own rule


_INVALID: Final = "invalid_request_error"
_REFUSALS: Final[dict[Refusal, _Kind]] = {
    Refusal.BAD_FRAME: _Kind(status=400, type=_INVALID),
    Refusal.BAD_PARAMS: _Kind(status=400, type=_INVALID),
    Refusal.EMPTY_TEXT: _Kind(status=400, type=_INVALID),
    Refusal.TEXT_TOO_LONG: _Kind(status=400, type=_INVALID),
    Refusal.CONTEXT_TOO_LONG: _Kind(status=400, type=_INVALID, code="context_length_exceeded"),
    Refusal.BAD_CURSOR: _Kind(status=400, type=_INVALID),
    Refusal.NOT_FOUND: _Kind(status=404, type=_INVALID, code="not_found"),
    Refusal.MODEL_UNKNOWN: _Kind(status=404, type=_INVALID, code="model_not_found"),
    Refusal.CONVERSATION_BUSY: _Kind(status=409, type=_INVALID, code="conversation_busy", may_retry=False),
    Refusal.ID_REUSED: _Kind(status=409, type=_INVALID, code="idempotency_key_reused", may_retry=False),
    Refusal.RATE_LIMITED: _Kind(status=429, type="requests", code="rate_limit_exceeded"),
    Refusal.TOO_MANY_RUNNING: _Kind(status=429, type="requests", code="rate_limit_exceeded"),
    # The day's limit does not come back within a client's patience.
    Refusal.QUOTA_EXCEEDED: _Kind(status=429, type="insufficient_quota", code="insufficient_quota", may_retry=False),
    Refusal.QUEUE_FULL: _Kind(status=503, type="server_error", code="queue_full"),
    Refusal.UNAVAILABLE: _Kind(status=503, type="server_error", code="unavailable"),
}
_FAILURES: Final[dict[Failure, _Kind]] = {
    # It has waited QUEUE_MAX_WAIT_S already; a client that tries again by itself makes the queue longer.
    Failure.EXPIRED: _Kind(status=503, type="server_error", may_retry=False),
    Failure.QUARANTINED: _Kind(status=500, type="server_error", may_retry=False),
    Failure.NUMERICAL: _Kind(status=500, type="server_error", may_retry=False),
    Failure.REJECTED: _Kind(status=400, type=_INVALID),
    Failure.ENGINE_ERROR: _Kind(status=500, type="server_error", may_retry=True),
    Failure.SHUTDOWN: _Kind(status=503, type="server_error", may_retry=True),
}
_PARAM: Final = re.compile(r"\bparams\.(\w+)")
_PARAM_OF: Final = {
    Refusal.EMPTY_TEXT: "messages",
    Refusal.TEXT_TOO_LONG: "messages",
    Refusal.CONTEXT_TOO_LONG: "messages",
    Refusal.MODEL_UNKNOWN: "model",
}


class ApiError(Exception):
    """A request of the API ends with this instead of an answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = _INVALID,  # OpenAI's name of the field
        param: str | None = None,
        code: str | None = None,
        may_retry: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.type, self.param, self.code = message, status, type, param, code
        self.may_retry, self.retry_after_s = may_retry, retry_after_s
        self.headers: dict[str, str] = {}
        if may_retry is not None:
            self.headers["x-should-retry"] = "true" if may_retry else "false"
        if retry_after_s is not None:
            self.headers["retry-after"] = str(math.ceil(retry_after_s))
        if status == 401:
            self.headers["WWW-Authenticate"] = 'Bearer realm="chatproject"'

    def as_json(self) -> dict[str, Any]:
        """Return the body in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JsonResponse:
        """Return the answer in OpenAI's shape."""
        return JsonResponse(self.as_json(), status=self.status, headers=self.headers)

    def plain_response(self) -> JsonResponse:
        """Return the answer of the plain routes."""
        body: dict[str, Any] = {"error": self.code or self.type, "message": self.message}
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        return JsonResponse(body, status=self.status, headers=self.headers)


def of_refusal(refused: Refused, *, is_plain: bool = False) -> ApiError:
    """Return the error for a refusal; the plain routes carry the refusal's own code."""
    kind = _REFUSALS[refused.code]
    named = _PARAM.search(refused.message)
    return ApiError(
        refused.message if is_plain else _PARAM.sub(r"\1", refused.message),
        status=kind.status,
        type=kind.type,
        param=named.group(1) if named else _PARAM_OF.get(refused.code),
        code=str(refused.code) if is_plain else kind.code,
        may_retry=kind.may_retry,
        retry_after_s=refused.retry_after_s,
    )


def of_end(end: End) -> ApiError:
    """Return the error for a generation that did not finish."""
    if end.code is None:
        return ApiError("The answer was stopped.", status=409, type=_INVALID, code="cancelled", may_retry=False)
    kind = _FAILURES[end.code]
    return ApiError(
        end.message or FAILURE_TEXT[end.code], status=kind.status, type=kind.type, code=str(end.code),
        may_retry=kind.may_retry,
    )  # fmt: skip
