"""A TCP proxy between the processes of the service and Redis or the database: one link per role and address.

It runs on a thread with a loop of its own, and serves from before the service starts until after it has ended. The
processes ask for their links themselves, through a Unix socket (`planted.links`). What is done to a role's links says
how many connections it met: none means that the fault broke nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROLES = ("web", "worker", "records")
_CHUNK = 65536


class _Link:
    """What one role has to one address."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.own_port = host, port, 0
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.delay_s, self.piece = 0.0, _CHUNK
        self.ends: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on both ways until one end closes."""
        with contextlib.ExitStack() as stack:
            self._track(stack, writer)
            await self.is_open.wait()
            try:
                other_reader, other_writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                return  # It is away: so is this connection.
            self._track(stack, other_writer)
            ways = ((reader, other_writer), (other_reader, writer))
            passing = [asyncio.create_task(self._pass(*ends)) for ends in ways]
            try:
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in passing:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self.piece):
                await self.is_open.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
            await self.is_open.wait()  # An end does not get through either.

    def _track(self, stack: contextlib.ExitStack, writer: asyncio.StreamWriter) -> None:
        self.ends.add(writer)
        stack.callback(self.ends.discard, writer)
        stack.callback(writer.close)


class Proxy:
    """All links. Its methods may be called from any thread; they change the links a moment later."""

    def __init__(self, control: Path) -> None:
        self.control = control  # where processes ask for links
        self._loop = asyncio.new_event_loop()
        self._links: dict[tuple[str, str, int], _Link] = {}
        self._making = asyncio.Lock()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def cut(self, role: str) -> int:
        """Reset every connection of a role; new ones go through."""
        return self._do(role, _reset)

    def hold(self, role: str) -> int:
        """From now on nothing arrives any more, no end either, and no new connection comes through: a black hole."""
        return self._do(role, lambda link: link.is_open.clear())

    def delay(self, role: str, seconds: float, *, piece: int = _CHUNK) -> int:
        """Let every piece, of at most ``piece`` bytes, wait so long before it is passed on."""

        def slow(link: _Link) -> None:
            link.delay_s, link.piece = seconds, piece

        return self._do(role, slow)

    def heal(self, role: str) -> int:
        """Pass on what was held, and all that comes."""
        self._do(role, lambda link: link.is_open.set())
        return self.delay(role, 0.0)

    def roles(self) -> set[str]:
        """Return the roles that have asked for a link."""
        return {role for role, _, _ in self._links}

    def _do(self, role: str, change: Callable[[_Link], None]) -> int:
        async def do() -> int:
            links = [link for (name, _, _), link in self._links.items() if name == role]
            num = sum(len(link.ends) // 2 for link in links)
            for link in links:
                change(link)
            return num

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            line = await reader.readline()
            if not line.endswith(b"\n"):
                return  # It was killed before it could ask.
            role, host, port = line.decode().split()
            async with self._making:
                link = self._links.get((role, host, int(port)))
                if link is None:
                    link = _Link(host, int(port))
                    self._servers.append(server := await asyncio.start_server(link.serve, "127.0.0.1", 0))
                    link.own_port = server.sockets[0].getsockname()[1]
                    self._links[role, host, int(port)] = link
            writer.write(f"{link.own_port}\n".encode())
            await writer.drain()

    def start(self) -> None:
        """Serve; raises OSError when the control socket cannot be made."""
        self._thread.start()
        serving = asyncio.run_coroutine_threadsafe(asyncio.start_unix_server(self._answer, self.control), self._loop)
        self._servers.append(serving.result(10))

    def stop(self) -> None:
        """End every link."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        await _cancel_others()


def _reset(link: _Link) -> None:
    for writer in link.ends:
        # Closed without lingering, a connection ends with a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def serving(directory: Path) -> Iterator[Proxy]:
    """Run a proxy until the block ends."""
    proxy = Proxy(directory / "proxy.sock")
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
