"""Starting the web demo: its address, its port, and what of Gradio is left out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lit_eve.demo.address import HOST, check_address, url_of
from lit_eve.demo.web.actions import Actions
from lit_eve.demo.web.engine import BATCH_SIZE, MAX_WAITING, Engine
from lit_eve.demo.web.guard import Guard
from lit_eve.demo.web.pictures import LIMITS, Limits
from lit_eve.demo.web.sessions import Sessions
from lit_eve.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor

MAX_EVENTS = 500  # of all users, that run or wait
PORT = 7860
SMALLEST_BODY = 32 * 2**20  # bytes that a request may have in any case: a long text is refused in words, not cut off


def require_gradio() -> None:
    """Raise ConfigError if Gradio is not installed."""
    # Read as it is imported. Its makers are told of no start, and it keeps no records of past events, which it would otherwise
    # summarise anew at each event.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ANALYTICS_MAX_EVENTS": "1"}
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the web demo needs Gradio: .venv/bin/pip install --no-deps --requirement requirements-demo.txt ({error})"
        ) from error


@contextmanager
def serve_page(
    models: Mapping[str, tuple[EveForConditionalGeneration, EveProcessor]],
    examples: Sequence[tuple[Image.Image, str]] = (),
    *,
    host: str = HOST,
    port: int = PORT,
    limits: Limits = LIMITS,
    batch_size: int = BATCH_SIZE,
    max_waiting: int = MAX_WAITING,
    sessions: Sessions | None = None,
) -> Iterator[str]:
    """The demo is there while the block runs; gives its URL.

    Args:
        models: model and processor by name.
        examples: images with a question each.
        host, port: where it listens; there and nowhere else.
        limits: of uploads.
        batch_size: answers that a model writes at once.
        max_waiting: questions that may wait.
        sessions: where users are remembered.

    Raises:
        ConfigError: Gradio is missing, or the address cannot be used.
    """
    check_address(host, port)
    require_gradio()
    import gradio
    from starlette.middleware import Middleware

    from lit_eve.demo.web.page import CSS, HEAD, build_page

    engine = Engine(models, batch_size, max_waiting)
    page = build_page(Actions(engine, limits, examples), Sessions() if sessions is None else sessions)
    page.queue(max_size=MAX_EVENTS)  # questions are bounded, in words, by the engine
    body = max(SMALLEST_BODY, 2 * limits.bytes)
    with tempfile.TemporaryDirectory(prefix="lit_eve_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                max_threads=MAX_EVENTS,  # events that run at once; all are coroutines
                quiet=True,
                show_error=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=CSS,
                head=HEAD,
                app_kwargs={"middleware": [Middleware(Guard, max_body=body)]},
            )
        except OSError as error:
            engine.close()
            raise ConfigError(f"the demo cannot listen on port {port} of {host}: {error}") from error
        try:
            yield url_of(host, port)
        finally:
            page.close()
            engine.close()
