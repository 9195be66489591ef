"""The chaos proxy between real sockets: it passes on, holds, delays and cuts, each role by itself."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tests.chaos.planted.links import role_of
from tests.chaos.proxy import serving


class Client:
    """A connection through the proxy to a server that says everything again."""

    def __init__(self, port: int):
        self.port = port

    async def connect(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def connect_through(self):
        """Connect, and wait until the other end has answered."""
        await self.connect()
        await self.says(b"hello")
        assert await self.hears(5, 5) == b"hello"
        return self

    async def says(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def hears(self, num: int, timeout_s: float) -> bytes | None:
        try:
            return await asyncio.wait_for(self.reader.readexactly(num), timeout_s)
        except TimeoutError:
            return None


@pytest.fixture
def proxy(tmp_path):
    with serving(tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def clients(proxy):
    """A client of the web role, and one of the worker's."""

    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    def ask(role: str) -> int:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(proxy.control))
            connection.sendall(f"{role} 127.0.0.1 {port}\n".encode())
            return int(connection.makefile().readline())

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ports = [await asyncio.to_thread(ask, role) for role in ("web", "worker", "web")]
    assert ports[0] == ports[2] != ports[1]
    yield [await Client(port).connect_through() for port in ports[:2]]
    server.close()


async def test_a_held_link_is_silent_until_it_heals_and_loses_nothing(proxy, clients):
    web, worker = clients
    assert proxy.hold("web") == 1
    await web.says(b"held")
    await worker.says(b"free")
    assert await worker.hears(4, 5) == b"free"
    assert await web.hears(4, 0.5) is None
    late = await Client(web.port).connect()
    await late.says(b"late")
    assert await late.hears(4, 0.5) is None
    proxy.heal("web")
    assert await web.hears(4, 5) == b"held"
    assert await late.hears(4, 5) == b"late"


async def test_a_cut_link_ends_its_connections_and_takes_new_ones(proxy, clients):
    web, worker = clients
    await web.says(b"a")
    assert await web.hears(1, 5) == b"a"
    assert proxy.cut("web") == 1
    with pytest.raises(ConnectionResetError):
        await web.hears(1, 5)
    await web.connect()
    await web.says(b"c")
    assert await web.hears(1, 5) == b"c"
    await worker.says(b"b")
    assert await worker.hears(1, 5) == b"b"


async def test_a_delayed_link_passes_pieces_late(proxy, clients):
    web, _ = clients
    proxy.delay("web", 0.1, piece=2)
    await web.says(b"warm")  # the reads that wait already take more
    assert await web.hears(4, 5) == b"warm"
    begin = time.monotonic()
    await web.says(b"12345678")
    assert await web.hears(8, 10) == b"12345678"
    assert time.monotonic() - begin > 0.4  # four pieces there


@pytest.mark.parametrize(("command", "role"), [
    ("python -m daphne -e tcp:port=1 chatproject.asgi:application", "web"),
    ("python -m celery -A workers.app worker --pool=custom", "worker"),
    ("python -m workers.spare", "worker"),
    ("python -m celery -A chatproject.celery worker -Q records", "records"),
    ("python -m celery -A chatproject.celery flower", None),
    ("python manage.py up", None),
])  # fmt: skip
def test_each_process_has_its_role(command, role):
    assert role_of(command.split()) == role
