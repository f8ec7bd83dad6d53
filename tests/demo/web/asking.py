"""Questions for the tests of the web demo, and what a model answers when it is asked alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from PIL import Image

from lit_eve.demo.web.engine import Ticket
from lit_eve.evaluation import answer_all
from tests.tiny_model import make_tiny, scene_image

LENGTH = 12  # tokens of the longest answer
QUESTIONS = ("how many shapes are there?", "what colour is the circle?", "is there a cross?", "what is red?")


def messages(question: str, *images: Image.Image) -> list[dict[str, Any]]:
    """A conversation of one question."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


@cache
def expected(question: str, seed: int | None = None, decoder: str = "llama") -> str:
    """The answer of the tiny model to a question about the scene of a seed, or about none."""
    images = [] if seed is None else [scene_image(seed)]
    return answer_all(*make_tiny(decoder), [(images, question)], max_new_tokens=LENGTH, progress=None)[0]


def wait_for(tickets: Sequence[Ticket], seconds: float = 60) -> None:
    """Until they are done."""
    end = time.monotonic() + seconds
    while not all(ticket.done for ticket in tickets):
        assert time.monotonic() < end, "the engine did not answer"
        time.sleep(0.005)


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
