"""The endpoint: OpenAI's chat completions over the engine that the web demo has, too."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lit_eve.demo.api.images import ImageReader
from lit_eve.demo.api.requests import ChatRequest, RequestError, quote, read_request
from lit_eve.demo.session import ContextError
from lit_eve.demo.web.engine import Engine, QueueFull, Ticket
from lit_eve.errors import LitEveError

MIN_BODY = 32 * 2**20  # bytes that a request may have in any case
SECONDS_TO_SEND = 60.0  # in which the body of a request has to be there
READ_AT_ONCE = 2  # bodies, whose images may take some hundred MB each meanwhile


def build_app(engine: Engine, reader: ImageReader, key: str | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: answers.
        reader: of the images of requests.
        key: what clients have to send as a bearer token; None: nothing.
    """
    made = int(time.time())
    models = {name: {"id": name, "object": "model", "created": made, "owned_by": "lit_eve"} for name in engine.decoders}

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(models.values())})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            message = f"there is no model {quote(name)} here; there are {', '.join(models)}"
            raise RequestError(message, "model", 404, "model_not_found")
        return JSONResponse(models[name])

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", Completions(engine, reader), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/health", health),
        ],
        middleware=[] if key is None else [Middleware(_Key, key=key)],
        exception_handlers={RequestError: _refused, HTTPException: _no_route, Exception: _failed},
    )


class Completions:
    """``POST /v1/chat/completions``.

    Args:
        engine: answers.
        reader: of images.
    """

    def __init__(self, engine: Engine, reader: ImageReader) -> None:
        self.engine, self.reader = engine, reader
        self.max_body = max(MIN_BODY, 2 * reader.limits.bytes)
        self.most = engine.max_waiting + engine.batch_size * len(engine.decoders)
        self._running = 0
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with suppress(ClientDisconnect), self._place():
            asked, ticket, changed = await self._ask(request)
            try:
                # So that an answer that cannot be begun has the status of an error, streamed or not.
                await _wait(lambda: ticket.done or asked.stream and ticket.count > 0, changed, request)
                if ticket.error:
                    raise _error_of(ticket)
                if asked.stream:
                    response: Response = StreamingResponse(
                        _stream(asked, ticket, changed), media_type="text/event-stream", headers={"cache-control": "no-cache"}
                    )
                else:
                    response = JSONResponse(_completion(asked, ticket))
                await response(scope, receive, send)
            finally:
                ticket.cancel()  # where the client is gone, its place is free with the next token

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Bound the requests that are held in memory."""
        if self._running >= self.most:
            raise _busy(f"{self._running} requests are being answered already: ask again in a moment")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _ask(self, request: Request) -> tuple[ChatRequest, Ticket, asyncio.Event]:
        """Put the question of a request into the engine's queue; the event is set whenever there is more of the answer."""
        body = await self._body(request)
        async with self._reading:
            asked = await asyncio.to_thread(self._read, body)
        changed = asyncio.Event()
        notify = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        try:
            return asked, self.engine.ask(asked.model, asked.messages, asked.sampling, notify), changed
        except QueueFull as error:
            raise _busy(str(error)) from error

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # nor could a web page send anything else here without being asked
            raise RequestError("the header Content-Type must be application/json", status=415)
        body, too_large = bytearray(), RequestError(f"a request has at most {self.max_body:,} bytes", status=413)
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body:
            raise too_large
        try:
            async with asyncio.timeout(SECONDS_TO_SEND):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self.max_body:  # sent in pieces, without a length
                        raise too_large
        except TimeoutError as error:
            raise RequestError(f"the request was not there within {SECONDS_TO_SEND:g} seconds", status=408) from error
        return bytes(body)

    def _read(self, body: bytes) -> ChatRequest:
        """The request with open images in place of their URLs."""
        asked = read_request(body, self.engine.decoders.keys(), self.reader.limits.pictures)
        geometry = self.engine.decoder(asked.model).model.geometry
        images = [part for message in asked.messages for part in message["content"] if part["type"] == "image"]
        for number, part in enumerate(images, 1):
            name = f"image {number} of {len(images)}"
            try:
                part["image"] = self.reader.read(part["image"], name, geometry)
            except LitEveError as error:
                raise RequestError(str(error), "messages", code="invalid_image") from error
        return asked


async def _wait(condition: Callable[[], bool], changed: asyncio.Event, request: Request) -> None:
    """Until the condition holds, which is looked at whenever something changed.

    Raises:
        ClientDisconnect: nobody waits for it any more.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    left = asyncio.create_task(leave())
    try:
        while not condition():
            change = asyncio.create_task(changed.wait())
            await asyncio.wait({change, left}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
            changed.clear()
            if left.done():
                raise ClientDisconnect
    finally:
        left.cancel()


# ---- responses


def _completion(asked: ChatRequest, ticket: Ticket) -> dict[str, Any]:
    message = {"role": "assistant", "content": ticket.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(ticket)}
    return {**_head(asked, "chat.completion"), "choices": [choice], "usage": _usage(ticket)}


async def _stream(asked: ChatRequest, ticket: Ticket, changed: asyncio.Event) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    head = _head(asked, "chat.completion.chunk") | ({"usage": None} if asked.include_usage else {})

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**head, "choices": [choice]})

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    sent, done = 0, False
    while not done:
        done, text = ticket.done, ticket.text  # in this order: what is done does not grow
        if len(text) > sent:
            yield chunk({"content": text[sent:]})
            sent = len(text)
        if not done:
            await changed.wait()
            changed.clear()
    if ticket.error:
        yield _event(_error_of(ticket).to_dict())
        return
    yield chunk({}, _finish_reason(ticket))
    if asked.include_usage:
        yield _event({**head, "choices": [], "usage": _usage(ticket)})
    yield "data: [DONE]\n\n"


def _head(asked: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": asked.model}


def _finish_reason(ticket: Ticket) -> str:
    return "stop" if ticket.is_complete else "length"


def _usage(ticket: Ticket) -> dict[str, int]:
    prompt, answer = ticket.prompt_tokens, ticket.count
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


# ---- errors


def _error_of(ticket: Ticket) -> RequestError:
    if isinstance(ticket.refusal, ContextError):
        return RequestError(ticket.error, "messages", code="context_length_exceeded")
    if ticket.refusal is not None:
        return RequestError(ticket.error, "messages")
    return RequestError(ticket.error, status=500, kind="server_error")


def _busy(message: str) -> RequestError:
    return RequestError(message, status=429, code="rate_limit_exceeded", kind="rate_limit_error")


async def _refused(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.to_dict(), error.status, {"retry-after": "1"} if error.status == 429 else None)


async def _no_route(request: Request, error: HTTPException) -> Response:
    places = "POST /v1/chat/completions, GET /v1/models, GET /health"
    message = f"{request.method} {quote(request.url.path)} is not served; there are {places}"
    return JSONResponse(RequestError(message).to_dict(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    failure = RequestError("the server failed; its log says why", status=500, kind="server_error")
    return JSONResponse(failure.to_dict(), failure.status)


class _Key:
    """ASGI middleware: whoever does not send the key is told nothing but whether the server is alive."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.key):
                message = "a key is needed: send the one that the server was started with as Authorization: Bearer KEY"
                error = RequestError(message, status=401, code="invalid_api_key", kind="authentication_error")
                response = JSONResponse(error.to_dict(), error.status, {"www-authenticate": "Bearer"})
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)
