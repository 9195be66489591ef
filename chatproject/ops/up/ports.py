"""Are the ports free that the service was told to use?"""

from __future__ import annotations

import errno
import socket

from chatproject.ops.up.config import Config
from chatproject.ops.up.errors import PortInUse


def check(config: Config) -> None:
    """Raise PortInUse, naming the variable to change, for the first port that cannot be listened on."""
    wanted = [(config.host, config.port + index, "PORT") for index in range(config.webs)]
    for host, port, variable in [*wanted, ("127.0.0.1", config.flower_port, "FLOWER_PORT")]:
        try:
            _bind(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                text = (
                    f"Port {port} on {host} is in use by another program. Stop it, or choose another port: "
                    f"{variable}={port + 10} make run"
                )
            elif error.errno == errno.EACCES:
                text = f"Port {port} needs root. Choose one from 1024 on: {variable}=8000 make run"
            else:
                text = f"Cannot listen on {host} port {port}: {error.strerror or error}. Correct HOST or {variable}."
            raise PortInUse(text) from error


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the servers do: connections of the last run that linger in TIME_WAIT are no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)
