"""A language model that grades answers, behind any endpoint that speaks OpenAI's chat protocol."""

from __future__ import annotations

from typing import Protocol


class Judge(Protocol):
    """Replies to a message; benchmarks know what to ask and how to read the reply."""

    def ask(self, message: str, *, temperature: float = 0.0, max_tokens: int | None = None) -> str:
        """The reply to a single user message."""
