"""A language model that grades answers, behind any endpoint that speaks OpenAI's chat protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

from rich.progress import track

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.optional import require

Item = TypeVar("Item")
Result = TypeVar("Result")


class Judge(Protocol):
    """Replies to messages; benchmarks know what to ask and how to read the reply.

    Attributes:
        model: its name.
        concurrency: how many questions it takes at a time.
        runs: how often it grades an answer where a benchmark takes the mean over runs.
    """

    model: str
    concurrency: int
    runs: int

    def ask(self, message: str, *, temperature: float = 0.0, max_tokens: int | None = None, repetition: int = 0) -> str:
        """The reply to a single user message; ``repetition`` tells apart equal requests that want a reply each."""


def ask_each(judge: Judge, ask: Callable[[Item], Result], items: Sequence[Item], title: str | None) -> list[Result]:
    """``ask(item)`` for each item, in their order, as many at a time as the judge takes; ``title`` of the bar, None: no bar."""
    with ThreadPoolExecutor(judge.concurrency) as pool:
        return list(track(pool.map(ask, items), title or "", total=len(items), disable=title is None or not items))


class OpenAIJudge:
    """A model behind an endpoint for OpenAI's chat completions: OpenAI's own, vLLM, Ollama, LiteLLM and many more.

    Requests that the endpoint is too busy for, that fail within it or that take too long are sent again, with growing pauses.

    Args:
        url: of the endpoint, up to and without ``/chat/completions`` ("https://api.openai.com/v1").
        model: its name there. Scores of MM-Vet are comparable only if gpt-4-0613 gave them.
        cache: a file that keeps every reply, one JSON object a line: a request that it holds is not sent again. None: no file.
        key_variable: the environment variable that holds the key of the API; local servers need none.
        timeout: seconds that a reply may take.
        retries: how often a request is sent again.
        concurrency: how many questions are asked at a time.
        runs: how often each answer to MM-Vet is graded; its score is the mean. The paper has 5.

    Raises:
        ConfigError: the package openai is missing, this is no URL, or a number makes no sense.
    """

    def __init__(
        self,
        url: str,
        model: str = "gpt-4-0613",
        *,
        cache: str | Path | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 5,
        concurrency: int = 1,
        runs: int = 1,
    ) -> None:
        self._openai = require("openai", "The judge")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the judge's URL begins with http:// or https://, unlike {url!r}")
        for key, value, least in (("concurrency", concurrency, 1), ("runs", runs, 1), ("retries", retries, 0)):
            if value < least:
                raise ConfigError(f"{key} of the judge must be at least {least}, got {value}")
        if not timeout > 0:
            raise ConfigError(f"timeout of the judge must be above 0 seconds, got {timeout}")
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.timeout, self.retries, self.concurrency, self.runs = timeout, retries, concurrency, runs
        self.cache = ReplyCache(cache)
        self._client = self._openai.OpenAI(
            base_url=self.url, api_key=os.environ.get(key_variable) or "none", timeout=timeout, max_retries=retries
        )

    def ask(self, message: str, *, temperature: float = 0.0, max_tokens: int | None = None, repetition: int = 0) -> str:
        """The reply to a single user message, from the cache if it is there.

        Raises:
            ConfigError: nothing answers at the URL, or it refuses the key, or knows no such model.
            LitEveError: no usable reply after all retries.
        """
        request: dict[str, Any] = {"model": self.model, "temperature": temperature}
        request |= {} if max_tokens is None else {"max_tokens": max_tokens}
        request["messages"] = [{"role": "user", "content": message}]
        known_by = {"url": self.url, "repetition": repetition, **request}
        reply = self.cache.get(known_by)
        if reply is None:
            reply = self._send(request)
            self.cache.put(known_by, reply)
        return reply

    def check(self) -> None:
        """Ask something short, past the cache, so that a wrong URL, key or model shows before hours of work.

        Raises:
            LitEveError: see :meth:`ask`.
        """
        message = {"role": "user", "content": "Reply with the digit 1."}
        self._send({"model": self.model, "temperature": 0.0, "max_tokens": 3, "messages": [message]})

    def _send(self, request: Mapping[str, Any]) -> str:
        try:
            response = self._client.chat.completions.create(**request)
        except self._openai.APITimeoutError as error:
            times = f", {self.retries + 1} times" if self.retries else ""
            raise LitEveError(f"the judge at {self.url} did not reply within {self.timeout:g} s{times}") from error
        except self._openai.APIConnectionError as error:
            raise ConfigError(f"no judge answers at {self.url}: {error.__cause__ or error}") from error
        except self._openai.APIStatusError as error:
            raise self._refusal(error.status_code, error.message) from error
        except json.JSONDecodeError as error:
            raise self._foreign() from error
        if not getattr(response, "choices", None):
            raise self._foreign()
        return response.choices[0].message.content or ""

    def _refusal(self, status: int, message: str) -> LitEveError:
        if status in (401, 403):
            key = "key in" if os.environ.get(self.key_variable) else "request without a key: set"
            return ConfigError(f"the judge at {self.url} refuses the {key} {self.key_variable}: {message}")
        if status == 404 and "model" in message.lower():
            return ConfigError(f"the judge at {self.url} has no model {self.model!r}: {message}")
        if status in (404, 405):
            return self._foreign()
        tries = f" after {self.retries + 1} tries" if status in (408, 409, 429) or status >= 500 else ""
        return LitEveError(f"the judge at {self.url} answers{tries} with an error: {message}")

    def _foreign(self) -> ConfigError:
        return ConfigError(f"{self.url}/chat/completions does not speak OpenAI's protocol; URLs usually end in /v1")


class ReplyCache:
    """Replies by request, in a file to which each is appended as it comes. A line that a kill cut short is passed over.

    Args:
        path: made at the first reply, with its folder; None: kept in memory only.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = Lock()
        self._replies: dict[str, str] = {}
        self._cut = False
        if self.path is not None and self.path.exists():
            content = self.path.read_text(encoding="utf-8", errors="replace")
            self._cut = not content.endswith("\n")
            for line in content.split("\n"):
                try:
                    row = json.loads(line)
                    self._replies[_key(row["request"])] = row["reply"]
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, request: Mapping[str, Any]) -> str | None:
        """The reply, or None."""
        return self._replies.get(_key(request))

    def put(self, request: Mapping[str, Any], reply: str) -> None:
        """Keep a reply; threads may call this at the same time."""
        with self._lock:
            self._replies[_key(request)] = reply
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    line = json.dumps({"request": request, "reply": reply}, ensure_ascii=False)
                    file.write(("\n" if self._cut else "") + line + "\n")
                self._cut = False


def _key(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)
