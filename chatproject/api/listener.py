"""A client that reads a stream: counted, looked after and sent home together with the chat sockets."""

from __future__ import annotations

from django.http import HttpRequest

from chatproject.accounts.errors import Refused
from chatproject.accounts.models import ApiKey
from chatproject.api.connection import connection_of
from chatproject.api.errors import ApiError
from chatproject.api.inbox import Inbox
from chatproject.chat.identity import Identity, Unwelcome
from chatproject.chat.presence import RESTARTING, get_presence
from chatproject.contract.errors import Refusal


class Listener:
    """What the presence of this process sees of a stream. Belongs to the event loop."""

    def __init__(self, key: ApiKey, inbox: Inbox) -> None:
        self.identity = Identity(user_id=str(key.user_id), key_id=key.pk)
        self._inbox = inbox

    def close(self, code: int) -> None:
        """End the stream with an error that says why."""
        self._inbox.fail(_restarting() if code == RESTARTING else _unwelcome())


def listen(request: HttpRequest, key: ApiKey) -> Inbox:
    """Return an inbox for a stream that is sent to whoever shows ``key``, until the request is over.

    Raises Refused(rate_limited) when the user has as many streams and sockets as one may have here, and ApiError when
    this process is about to end.
    """
    connection = connection_of(request)
    inbox = Inbox(on_too_slow=connection.cut)
    listener = Listener(key, inbox)
    try:
        get_presence().join(listener)
    except Unwelcome as unwelcome:
        if unwelcome.code == RESTARTING:
            raise _restarting() from None
        raise Refused(
            Refusal.RATE_LIMITED, "You read too many streams at once. Close one, or wait for one to end.",
            retry_after_s=1,
        ) from None  # fmt: skip
    connection.on_end(lambda: get_presence().leave(listener))
    return inbox


def _unwelcome() -> ApiError:
    message = "This API key is not valid any more: it was revoked, or its account was switched off."
    return ApiError(message, status=401, type="authentication_error", code="invalid_api_key")


def _restarting() -> ApiError:
    message = "The service is restarting. Ask again in a moment."
    return ApiError(message, status=503, type="server_error", code="restarting")
