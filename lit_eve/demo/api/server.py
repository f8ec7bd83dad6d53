"""Starting the endpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from socket import socket
from typing import TYPE_CHECKING

from lit_eve.demo.address import url_of
from lit_eve.demo.api.images import ImageReader
from lit_eve.demo.web.engine import BATCH_SIZE, MAX_WAITING, Engine
from lit_eve.errors import ConfigError

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor

PORT = 8000
SECONDS_TO_END = 3  # in which answers may be finished when the server ends


def require_server() -> None:
    """Raise ConfigError if what serves is not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the endpoint needs starlette and uvicorn: .venv/bin/pip install --editable '.[serve]' ({error})"
        ) from error


@contextmanager
def serve_endpoint(
    models: Mapping[str, tuple[EveForConditionalGeneration, EveProcessor]],
    listener: socket,
    reader: ImageReader | None = None,
    *,
    key: str | None = None,
    batch_size: int = BATCH_SIZE,
    max_waiting: int = MAX_WAITING,
) -> Iterator[str]:
    """The endpoint is there while the block runs; gives its URL, as clients take it.

    Args:
        models: model and processor by name.
        listener: where clients connect (:func:`~lit_eve.demo.address.listen`); it is closed at the end.
        reader: of the images of requests.
        key: what clients have to send; None: nothing.
        batch_size: answers that a model writes at once.
        max_waiting: questions that may wait.

    Raises:
        ConfigError: a package is missing.
    """
    require_server()
    import uvicorn

    from lit_eve.demo.api.app import build_app

    engine = Engine(models, batch_size, max_waiting)
    app = build_app(engine, reader or ImageReader(), key)
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="endpoint", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise ConfigError("the endpoint could not be started; the lines above say why")
            time.sleep(0.01)
        yield f"{url_of(*listener.getsockname()[:2])}/v1"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        engine.close()
