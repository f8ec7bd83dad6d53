"""A server of tiny models in this process, and what clients send to it."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from openai import OpenAI
from PIL import Image

from lit_eve.demo.address import listen
from lit_eve.demo.api.images import ImageReader
from lit_eve.demo.api.server import serve_endpoint
from tests.demo.web.asking import free_port
from tests.tiny_model import make_tiny


@contextmanager
def serving(reader: ImageReader | None = None, names: Sequence[str] = ("one", "two/x"), **options: Any) -> Iterator[str]:
    """The endpoint of models of random weights; gives its URL."""
    models = {name: make_tiny(seed=seed) for seed, name in enumerate(names)}
    with listen("127.0.0.1", free_port()) as listener, serve_endpoint(models, listener, reader, **options) as url:
        yield url


def client(url: str, key: str = "none") -> OpenAI:
    """OpenAI's own, which is not to try again."""
    return OpenAI(base_url=url, api_key=key, max_retries=0)


def data_url(image: Image.Image) -> str:
    """An image as clients send it."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def user(text: str, *urls: str) -> dict[str, Any]:
    """A message with images."""
    return {"role": "user", "content": [*map(image_part, urls), {"type": "text", "text": text}]}


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def post(url: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of what is answered to any body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/chat/completions", data, {"Content-Type": "application/json", **headers})
    return opened(request)


def opened(request: urllib.request.Request | str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
