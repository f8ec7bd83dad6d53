"""A server on this machine that speaks OpenAI's chat protocol, with replies made up by a test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple, TypeAlias


class Failure(NamedTuple):
    """A reply that is none: an HTTP status and the error that goes with it."""

    status: int
    message: str = "no"
    code: str | None = None


class Hang(NamedTuple):
    """No reply for so many seconds."""

    seconds: float


class Page(NamedTuple):
    """Something else than the protocol's JSON."""

    text: str
    type: str = "text/html"


Reply: TypeAlias = str | Failure | Hang | Page


class StubServer(ThreadingHTTPServer):
    """Answers POST /v1/chat/completions.

    Args:
        reply: makes a text, `Failure`, `Hang` or `Page` of a request's JSON.

    Attributes:
        requests: the JSON of all requests, in the order in which they came.
        keys: the API keys that came with them.
        most_at_a_time: how many requests were open together.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests, self.keys = reply, [], []
        self.open = self.most_at_a_time = 0
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.send(404, {"detail": "Not Found"})
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers["Authorization"].removeprefix("Bearer "))
            self.server.open += 1
            self.server.most_at_a_time = max(self.server.most_at_a_time, self.server.open)
        try:
            reply = self.server.reply(request)
            if isinstance(reply, Hang):
                time.sleep(reply.seconds)
                reply = "too late"
        finally:
            with self.server.lock:
                self.server.open -= 1
        if isinstance(reply, Page):
            return self.send(200, reply.text, reply.type)
        if isinstance(reply, Failure):
            return self.send(reply.status, {"error": {"message": reply.message, "code": reply.code, "type": "error"}})
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": request["model"]}
        return self.send(200, {**head, "choices": [choice]})

    def send(self, status: int, content: dict[str, Any] | str, type: str = "application/json") -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After-Ms", "10")  # else clients wait for half a second and more
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has lost its patience

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def stub_server(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[StubServer]:
    """A server that runs while the context is open."""
    server = StubServer(reply)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
