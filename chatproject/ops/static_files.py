"""WhiteNoise that lets async requests stay async.

WhiteNoise is a synchronous middleware, and one such in the chain costs every request under ASGI a thread of its own
for as long as it lasts: 24 waiting API calls were 24 threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware


class StaticFiles(WhiteNoiseMiddleware):
    """Serves the static files; everything else goes on without a thread."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(get_response, *args, **kwargs)
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Return the response, or in an async chain what awaits it."""
        if iscoroutinefunction(self):
            return self._answer(request)
        return super().__call__(request)

    async def _answer(self, request: HttpRequest) -> Any:
        path = request.path_info
        file = self.find_file(path) if self.autorefresh else self.files.get(path)
        if file is None:
            return await self.get_response(request)
        return await sync_to_async(self._whole, thread_sensitive=False)(self.serve(file, request))

    def _whole(self, response: Any) -> HttpResponse:
        # Django would read a file's iterator whole too, but in the request's own thread and with a warning.
        answer = HttpResponse(b"".join(response.streaming_content), status=response.status_code)
        del answer["Content-Type"]
        for name, value in response.items():
            answer[name] = value
        response.close()
        return answer
