"""Where a server listens: there and nowhere else."""

from __future__ import annotations

import errno
import socket

from lit_eve.errors import ConfigError

HOST = "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; whoever connects waits until he is accepted.

    Raises:
        ConfigError: a server cannot listen there.
    """
    if not 0 < port < 2**16:
        raise ConfigError(f"--port must be between 1 and 65535, got {port}")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(kind, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address)
            held.listen()  # two processes may bind an address, one may listen
        except OSError:
            held.close()
            raise
        return held
    except socket.gaierror as error:
        raise ConfigError(f"--host {host} is no address: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} of {host} is in use: end what uses it, or choose another --port") from error
        raise ConfigError(f"--host {host} --port {port} cannot be listened to: {error.strerror}") from error


def check_address(host: str, port: int) -> None:
    """Raise ConfigError if a server cannot listen there."""
    listen(host, port).close()


def url_of(host: str, port: int) -> str:
    """The address as a browser or a client takes it."""
    name = "localhost" if host == HOST else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"
