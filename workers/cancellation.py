"""Hear words on this worker's control channel: cancel, watch, drain. What is lost here is found by the next renewal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import redis

from chatproject.contract import names
from chatproject.contract.errors import ContractError
from chatproject.contract.messages import Control

log = logging.getLogger(__name__)
POLL_S: Final = 0.5
RETRY_S: Final = 1.0


class ControlListener:
    """Owns one daemon thread that subscribes, and again after every loss of Redis."""

    def __init__(self, *, redis_url: str, slot: str, heard: Callable[[Control], None]) -> None:
        # A client of its own: it sits in a blocking read most of the time.
        self._client = redis.Redis.from_url(
            redis_url, socket_timeout=30, socket_connect_timeout=2, health_check_interval=10, retry=None
        )
        self._channel = names.control_channel(slot)
        self._heard = heard
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread within half a second."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError) as error:
                log.warning("control: Redis is away: %r", error)
                self._stopped.wait(RETRY_S)

    def _listen(self) -> None:
        with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe(self._channel)
            while not self._stopped.is_set():
                message = pubsub.get_message(timeout=POLL_S)
                if message is None:
                    continue
                try:
                    self._heard(Control.from_json(message["data"]))
                except ContractError as error:
                    log.warning("control: %s", error)
