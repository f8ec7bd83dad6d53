"""Progress bars of transformers, in the commands: none for what is done at once, none where nobody watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DELAY = 2.0  # seconds of work after which a bar appears


def show_long_bars_only() -> None:
    """Let "Loading weights" and its like appear in a terminal only, and only where they take longer than :data:`DELAY`."""
    from transformers.utils import logging

    def make(bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        return bar(*args, **{"disable": None, "delay": DELAY, **settings})  # None: unless its file is a terminal

    logging.set_tqdm_hook(make)
