from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lit_eve.demo.web.guard import Guard


def request(path: str, body: bytes = b"", headers: tuple = (), kind: str = "http") -> tuple[int, list[bytes]]:
    """Status, and what the guarded application read."""
    read: list[bytes] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])
            if not message["more_body"]:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                return
        await send({"type": "http.response.start", "status": 400, "headers": []})

    pieces = [body[i : i + 10] for i in range(0, len(body), 10)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Guard(app, 50)({"type": kind, "path": path, "headers": headers}, receive, send))
    return sent[0]["status"], read


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/theme.css",
        "/assets/index-1.js",
        "/static/fonts/a/b.woff2",
        "/gradio_api/queue/join",
        "/gradio_api/heartbeat/ab12",
    ],
)
def test_the_page_is_there(path: str) -> None:
    assert request(path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=/etc/passwd", "/file=x", "/gradio_api/upload", "/gradio_api/proxy=http://a.b/", "/gradio_api/info"),
        *("/assets/../../x", "/assets/a/b", "/gradio_api/component_server", "/gradio_api/run/predict", "/monitoring", "/login"),
        *("/gradio_api/vibe-edit/", "/gradio_api/process_recording", "/config/../x", "/gradio_api/heartbeat/../upload"),
    ],
)
def test_everything_else_is_not_found(path: str) -> None:
    assert request(path) == (404, [])


def test_large_bodies_are_not_read() -> None:
    assert request("/gradio_api/queue/join", bytes(50), ((b"content-length", b"50"),))[0] == 200
    for length in (b"51", b"-1", b"many"):
        assert request("/gradio_api/queue/join", bytes(51), ((b"content-length", length),)) == (413, [])
    status, read = request("/gradio_api/queue/join", bytes(1000))  # in pieces, without a length
    assert status == 400 and sum(map(len, read)) <= 50


def test_web_sockets_are_not_there() -> None:
    assert request("/", kind="websocket") == (404, [])
