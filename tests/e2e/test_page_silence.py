"""A connection that looks open and is not: the page asks, drops it and comes back, and says so after two seconds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, WebSocket, expect

from tests.chaos.proxy import Proxy, serving
from tests.e2e.conftest import Running
from tests.e2e.page import NOBODY, Person, stored, wait_end, wait_text, write

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "redis")]

_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class Door(socketserver.ThreadingTCPServer):
    """A port before the service, which takes WebSockets and then closes them, as the service without its database."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.service = urlsplit(url).hostname, urlsplit(url).port
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.has_database = True
        self.turned_away: list[float] = []  # when, monotonic seconds
        self.sockets: set[socket.socket] = set()

    def lose_database(self) -> None:
        """End the WebSockets, and let no other get further than its handshake."""
        self.has_database = False
        for each in list(self.sockets):
            with suppress(OSError):  # its page has just gone
                each.shutdown(socket.SHUT_RDWR)


class _Visit(socketserver.BaseRequestHandler):
    server: Door

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.request.recv(65_536)
            if not piece:
                return
            head += piece
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
        if key and not self.server.has_database:
            self.server.turned_away.append(time.monotonic())
            proof = base64.b64encode(hashlib.sha1(key[1] + _WEBSOCKET, usedforsecurity=False).digest())
            self.request.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Protocol: chat.v1\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n"
                b"\x88\x02" + struct.pack("!H", 1011)
            )
            self.request.recv(65_536)  # The browser closes it too, and waits for the end.
            return
        with socket.create_connection(self.server.service) as service:
            service.sendall(head)
            if key:
                self.server.sockets.add(self.request)
            back = threading.Thread(target=_pass, args=(service, self.request), daemon=True)
            back.start()
            _pass(self.request, service)
            back.join()
            self.server.sockets.discard(self.request)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def door(service: Running) -> Iterator[Door]:
    with Door(service.url) as found:
        threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with serving(tmp_path) as found:
        yield found


def linked(proxy: Proxy, url: str) -> str:
    """Return the address under which the proxy passes the service on, as role ``web``."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(proxy.control))
        asking.sendall(f"web {urlsplit(url).hostname} {urlsplit(url).port}\n".encode())
        return f"http://127.0.0.1:{int(asking.makefile().readline())}"


@contextmanager
def visiting(browser: Browser, url: str, cookies: Any) -> Iterator[Page]:
    with Person(browser, url, max_tokens=150, storage_state=cookies) as person:
        yield person.tab()


def banner(page: Page) -> Any:
    return page.get_by_role("status").filter(has_text="Connection lost")


def sockets_of(page: Page) -> list[list[dict[str, Any]]]:
    """Return, of each WebSocket that the page opens from now on, the frames that go either way."""
    sockets: list[list[dict[str, Any]]] = []

    def opened(one: WebSocket) -> None:
        frames: list[dict[str, Any]] = []
        sockets.append(frames)
        for way in ("framesent", "framereceived"):
            one.on(way, lambda payload: frames.append(json.loads(payload)))  # type: ignore[call-overload]

    page.on("websocket", opened)
    return sockets


def test_a_service_that_takes_sockets_only_to_close_them_is_left_in_peace(
    browser: Browser, door: Door, cookies: Any
) -> None:
    with visiting(browser, door.url, cookies) as page:
        write(page, "Before the database went.")
        wait_end(page)
        door.lose_database()
        expect(banner(page)).to_be_visible()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        begun = len(door.turned_away)
        page.wait_for_timeout(6_000)
        # 0.4, 0.8, 1.6, ... s at most before each; a page that takes the handshake for success tries 15 times or more.
        assert len(door.turned_away) - begun <= 6
        assert [url for url in asked if not url.endswith("/ws/chat/")] == []
        write(page, "Without a database.")
        expect(page.get_by_text("Not sent yet")).to_be_visible()
        expect(banner(page)).to_be_visible()
        door.has_database = True
        expect(banner(page)).to_be_hidden(timeout=30_000)
        wait_end(page)
        assert [message["role"] for message in stored(page)] == ["user", "assistant"] * 2


def test_half_an_answer_from_a_dead_connection_is_completed(
    browser: Browser, service: Running, proxy: Proxy, cookies: Any
) -> None:
    with visiting(browser, linked(proxy, service.url), cookies) as page:
        sockets = sockets_of(page)
        page.reload()
        write(page, "Half of it.")
        wait_text(page, 80)
        assert proxy.hold("web") > 0
        half = len(wait_text(page, 80))
        expect(banner(page)).to_be_visible(timeout=60_000)
        proxy.heal("web")
        whole = wait_end(page)
        assert len(whole) > half
        assert "".join(whole.split()) == "".join(stored(page)[-1]["text"].split())
        expect(banner(page)).to_be_hidden()
        resumed = [frame for frame in sockets[-1] if frame["type"] == "resume" and frame["generation"] != NOBODY]
        assert [frame["after"] > 0 for frame in resumed] == [True]


def test_a_page_whose_network_comes_back_asks_at_once(
    browser: Browser, service: Running, proxy: Proxy, cookies: Any
) -> None:
    with visiting(browser, linked(proxy, service.url), cookies) as page:
        sockets = sockets_of(page)
        page.reload()

        def asked() -> int:
            return sum(frame.get("after") == -1 for frames in sockets for frame in frames)

        def answered() -> int:
            return sum(frame["type"] == "error" for frames in sockets for frame in frames)

        def come_back_until(count: int) -> None:
            deadline = time.monotonic() + 30
            while asked() < count and time.monotonic() < deadline:
                page.evaluate("window.dispatchEvent(new Event('online'))")
                page.wait_for_timeout(200)
            assert asked() == count

        # The service is there: it answers, and nothing else happens.
        come_back_until(2)
        while answered() < 2:
            page.wait_for_timeout(20)
        assert len(sockets) == 1
        expect(page.locator("[data-problem]")).to_be_hidden()
        expect(page.locator("[data-banner]")).to_be_hidden()
        # It is not: the page finds out, although it awaits nothing.
        assert proxy.hold("web") > 0
        come_back_until(3)
        expect(banner(page)).to_be_visible(timeout=30_000)
        proxy.heal("web")
        expect(banner(page)).to_be_hidden(timeout=30_000)
