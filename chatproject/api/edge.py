"""What every route of the API has in common: method, errors in the dialect's shape, a counted answer.

Nothing raised below reaches a client as a page or a traceback.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.http.request import RawPostDataException
from django.views.decorators.csrf import csrf_exempt

from chatproject import metrics
from chatproject.accounts.errors import Refused
from chatproject.api import errors
from chatproject.api.errors import ApiError
from chatproject.contract.errors import Refusal

log = logging.getLogger(__name__)
# It may have been in the middle of a COMMIT.
_DATABASE_AWAY = "The database does not answer. Try again in a moment; under the same Idempotency-Key it counts once."
View = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


def route(*methods: str, is_plain: bool = False) -> Callable[[View], View]:
    """Make an async view a route that takes ``methods``; keys are sent on purpose, so no CSRF token is asked for."""

    def decorate(view: View) -> View:
        @functools.wraps(view)
        async def answered(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
            response: HttpResponseBase
            try:
                if request.method not in methods:
                    raise ApiError(
                        f"{request.method} is not possible here; use {' or '.join(methods)}.", status=405,
                        code="method_not_allowed",
                    )  # fmt: skip
                response = await view(request, **kwargs)
            except Exception as error:
                refused = as_api_error(error, is_plain=is_plain)
                response = refused.plain_response() if is_plain else refused.response()
                if refused.status == 405:
                    response["Allow"] = ", ".join(methods)
            metrics.api_answered(route=view.__name__, status=response.status_code)
            return response

        exempt: View = csrf_exempt(answered)
        return exempt

    return decorate


def body_of(request: HttpRequest) -> bytes:
    """Return the body. Raises ApiError when it is larger than this service reads, or did not come whole."""
    try:
        return request.body
    except RequestDataTooBig as error:
        raise ApiError("The body is larger than this service reads. Shorten the messages.") from error
    except (RawPostDataException, OSError) as error:
        raise ApiError("The body did not come whole. Send it again.") from error


def as_api_error(error: Exception, *, is_plain: bool = False) -> ApiError:
    """Return what the client is told of an error; one that nobody expected is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        return errors.of_refusal(error, is_plain=is_plain)
    if isinstance(error, (OperationalError, InterfaceError)):
        log.warning("the database is away: %r", error)
        away = Refused(Refusal.UNAVAILABLE, _DATABASE_AWAY, retry_after_s=2)
        return errors.of_refusal(away, is_plain=is_plain)
    log.error("the API failed", exc_info=error)
    return ApiError("The service had an error. Try again.", status=500, type="server_error", code="internal_error")


@route("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
async def not_built(request: HttpRequest, **_: Any) -> JsonResponse:
    """Answer a promised route that is not there yet."""
    message = f"{request.path} is not available on this service yet."
    raise ApiError(message, status=501, type="not_implemented_error", code="not_implemented")


@route("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
async def unknown(request: HttpRequest, **_: Any) -> HttpResponse:
    """Answer an address under `/v1` that nobody promised."""
    raise ApiError(f"There is no {request.method} {request.path}.", status=404, code="unknown_url")


@route("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", is_plain=True)
async def unknown_plain(request: HttpRequest, **_: Any) -> HttpResponse:
    """Answer an address under `/api` that nobody promised."""
    raise ApiError(f"There is no {request.method} {request.path}.", status=404, code="unknown_url")
