"""Why the service cannot be started; each text says what to do."""

from __future__ import annotations


class UpError(Exception):
    """The service cannot start, and the text tells the operator what to change."""


class AlreadyRunning(UpError):
    """Another `up` holds this checkout."""


class PortInUse(UpError):
    """A port the service was told to listen on belongs to another program."""


class RedisUnavailable(UpError):
    """There is no Redis to use, or the named one does not answer."""


class StartFailed(UpError):
    """A process that the service cannot do without keeps ending before it is ready."""


class StopRequested(UpError):
    """The operator asked to stop before everything was ready."""
