"""Images of other machines, for a server that strangers may ask to fetch them: only from public addresses, and in bounded time.

What is checked is the address that a connection is made to, for every redirect anew. A name that resolves to another address
the next time (DNS rebinding) gains nothing: it is resolved once, and the connection goes to what was checked.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, BinaryIO
from urllib.request import (
    AbstractHTTPHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

from lit_eve.errors import SampleError

_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not private, loopback, link-local, multicast or reserved."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        inner = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip.sixtofour
        return is_public(str(inner)) if inner is not None else ip in _UNICAST and ip.is_global
    return ip.is_global and not ip.is_multicast


@contextmanager
def open_public(request: Request, timeout: float, allowed: Callable[[str], bool] = is_public) -> Iterator[BinaryIO]:
    """Open a request for ``http:`` or ``https:``, past all proxies of the environment, which would connect to anything.

    Args:
        request: the first; redirects are followed.
        timeout: seconds after which all is over, however slowly a server sends.
        allowed: whether an address may be connected to.

    Raises:
        SampleError: an address may not.
        OSError: it cannot be had.
    """
    line = _Line(allowed, timeout)
    opener = OpenerDirector()
    for handler in (_Handler(line), HTTPRedirectHandler(), HTTPDefaultErrorHandler(), HTTPErrorProcessor(), UnknownHandler()):
        opener.add_handler(handler)
    watch = threading.Timer(timeout, line.cut)
    watch.start()
    try:
        with opener.open(request, timeout=timeout) as response:
            yield response
            if line.is_cut:  # what came until then looks whole where no length was told
                raise TimeoutError(f"it took more than {timeout:g} seconds")
    finally:
        watch.cancel()


class _Line:
    """Makes the connections of one request, and can cut them."""

    def __init__(self, allowed: Callable[[str], bool], timeout: float) -> None:
        self.allowed, self.timeout = allowed, timeout
        self.is_cut = False
        self._sockets: list[socket.socket] = []

    def connect(self, host: str, port: int) -> socket.socket:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if not all(self.allowed(place[0]) for *_, place in found):
            raise SampleError(f"{host} is at an address of a private network, where no image is fetched from")
        fault: OSError | None = None
        for family, kind, protocol, _, place in found:
            connection = socket.socket(family, kind, protocol)
            self.hold(connection)
            connection.settimeout(self.timeout)
            try:
                connection.connect(place)
                return connection
            except OSError as error:
                connection.close()
                fault = error
        raise fault or OSError(f"{host} has no address")

    def hold(self, connection: socket.socket) -> None:
        """Let a connection be cut with the rest."""
        self._sockets.append(connection)

    def cut(self) -> None:
        """End all connections, whoever waits for them."""
        self.is_cut = True
        for connection in self._sockets:
            with suppress(OSError):  # closed already
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # an SSLSocket's own would wait for whoever reads


class _Plain(HTTPConnection):
    def __init__(self, *args: Any, line: _Line, **options: Any) -> None:
        super().__init__(*args, **options)
        self.line = line

    def connect(self) -> None:
        self.sock = self.line.connect(self.host, self.port)


class _Secure(_Plain):
    default_port = 443

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.line.hold(self.sock)  # in place of what it wraps
        self.sock.do_handshake()


class _Handler(AbstractHTTPHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.line = line

    def http_open(self, request: Request) -> Any:
        return self.do_open(partial(_Plain, line=self.line), request)

    def https_open(self, request: Request) -> Any:
        return self.do_open(partial(_Secure, line=self.line), request)

    http_request = https_request = AbstractHTTPHandler.do_request_
