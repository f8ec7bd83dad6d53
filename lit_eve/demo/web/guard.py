"""What of Gradio's server can be reached: the page and its questions. Everything else it could do is not found."""

from __future__ import annotations

import re
from typing import Any

# No uploads to disk, no files, no proxy, no API, no recording of runs.
REACHED = re.compile(
    r"/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|assets/[^/]+|static/(?:[^/]+/)*[^/]+)?"
    r"|/gradio_api/(?:queue/(?:join|data)|heartbeat/\w+|cancel|reset|startup-events|app_id)/?"
)


class Guard:
    """ASGI middleware: unknown paths are not found, large bodies are refused before they are read.

    Args:
        app: what is guarded.
        max_body: bytes of a request.
    """

    def __init__(self, app: Any, max_body: int) -> None:
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" else _refuse(send, 404, "not found"))
            return
        if not REACHED.fullmatch(scope["path"]):
            await _refuse(send, 404, "not found")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            await _refuse(send, 413, f"a request has at most {self.max_body} bytes")
            return
        read = 0

        async def counted() -> dict[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body:  # sent in pieces, without a length
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, counted, send)


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
