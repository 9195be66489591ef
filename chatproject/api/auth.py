"""Who asks: an API key in `Authorization: Bearer`, or `X-API-Key` on the plain routes. No cookie, so no CSRF."""

from __future__ import annotations

from django.http import HttpRequest

from chatproject.accounts import keys
from chatproject.accounts.models import ApiKey, User
from chatproject.api import database
from chatproject.api.errors import ApiError


async def authenticate(request: HttpRequest, *, scope: str) -> User:
    """Return the user of the request's key. Raises what `key_of` raises."""
    return (await key_of(request, scope=scope)).user


async def key_of(request: HttpRequest, *, scope: str) -> ApiKey:
    """Return the request's key. Raises ApiError: 401 without a valid key, 403 when it may not do this."""
    scheme, _, plaintext = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        plaintext = request.headers.get("X-API-Key", "")
    plaintext = plaintext.strip()
    if not plaintext:
        raise _unauthorized("Send your API key as 'Authorization: Bearer <key>'. Make one on the page /settings.")
    key = await database.run(keys.identify, plaintext)
    if key is None:
        raise _unauthorized("This API key is not valid, or was revoked. Make one on the page /settings.")
    if not keys.allows(key, scope):
        raise ApiError(
            f"This API key may not do this: it lacks the scope {scope!r}.", status=403, type="permission_error",
            code="insufficient_scope",
        )  # fmt: skip
    return key


def _unauthorized(message: str) -> ApiError:
    return ApiError(message, status=401, type="authentication_error", code="invalid_api_key")
