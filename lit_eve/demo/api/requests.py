"""What a client asks for, in OpenAI's words: read in full, or refused in a sentence.

Nothing that would change an answer is ignored.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_eve.demo.web.decoding import Sampling
from lit_eve.errors import LitEveError

MAX_CHARACTERS = 100_000  # of a conversation; a tokenizer takes seconds for millions, in which nobody is answered
MAX_STOPS, LONGEST_STOP = 4, 200
HIGHEST_TEMPERATURE = 2.0
DEFAULT_TOKENS = 1024  # of an answer, where a request names no number

_READ = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream"}
_READ |= {"stream_options"}
_NO_PART = {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
"""Fields about the client's account: no answer depends on them."""
_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "reasoning_effort": ("none",),
}
"""Fields that are not supported, and the values with which they ask for nothing, as null does for every field."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE = {"role", "content"}
_EMPTY_PARTS = {"refusal", "tool_calls", "function_call", "audio", "annotations", "name"}
"""Fields of messages that clients send back as they got them, with nothing in them."""
_DETAILS = ("auto", "low", "high")
_LONGEST_QUOTE = 80


class RequestError(LitEveError):
    """A request that is answered with an error.

    Args:
        message: the sentence.
        param: the field that it is about.
        status: of HTTP.
        code: by which clients tell errors apart.
        kind: OpenAI's ``type``.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code, self.kind = param, status, code, kind

    def to_dict(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion.

    Attributes:
        model: a name.
        messages: in the format of transformers; under ``image`` stand URLs.
        sampling: how the answer is drawn.
        stream: whether it is wanted word by word.
        include_usage: whether the stream ends with the numbers of tokens.
    """

    model: str
    messages: list[dict[str, Any]]
    sampling: Sampling
    stream: bool
    include_usage: bool


def read_request(body: bytes, models: Collection[str], max_images: int) -> ChatRequest:
    """The request in a body that anyone may have sent.

    Args:
        body: of a POST.
        models: names of those that are there.
        max_images: of a request.

    Raises:
        RequestError: it is none, or asks for what is not supported.
    """
    fields = _fields(body)
    model = fields.get("model")
    if not isinstance(model, str):
        raise RequestError(f"the field model must be a name: {', '.join(models)}", "model")
    if model not in models:
        message = f"there is no model {quote(model)} here; there are {', '.join(models)}"
        raise RequestError(message, "model", 404, "model_not_found")
    for name, value in fields.items():
        if name in _NOTHING and value not in _NOTHING[name]:
            raise RequestError(f"{name} is not supported; leave it away, or send {_choices(_NOTHING[name])}", name)
        if name not in _READ | _NO_PART | _NOTHING.keys():
            raise RequestError(f"the field {quote(name)} is not supported: it may change the answer", name[:_LONGEST_QUOTE])
    stream = _truth(fields, "stream")
    return ChatRequest(model, _messages(fields, max_images), _sampling(fields), stream, _include_usage(fields, stream))


def quote(value: Any) -> str:
    """What a client sent, as a message may repeat it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of the body that are there and not null."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RequestError(f"the body is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    return {name: value for name, value in fields.items() if value is not None}


# ---- sampling


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    drawn = any(name in fields for name in ("temperature", "top_p", "seed"))
    temperature = _number(fields, "temperature", 0, HIGHEST_TEMPERATURE, 1.0 if drawn else 0.0)
    top_p = _number(fields, "top_p", 0, 1, 1.0)
    if top_p == 0:
        raise RequestError("top_p must be above 0", "top_p")
    seed = _integer(fields, "seed", -(2**63), 2**63 - 1, random.randrange(2**31))
    return Sampling(_max_tokens(fields), temperature, top_p, seed, _stops(fields))


def _max_tokens(fields: Mapping[str, Any]) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    values = {_integer(fields, name, 1, 2**31 - 1, DEFAULT_TOKENS) for name in names}
    if len(values) > 1:
        raise RequestError("max_tokens and max_completion_tokens differ: send one of them", "max_tokens")
    return next(iter(values), DEFAULT_TOKENS)


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(text, str) and 0 < len(text) <= LONGEST_STOP for text in stops)
    ):
        raise RequestError(
            f"stop must be a text or a list of up to {MAX_STOPS}, each of 1 to {LONGEST_STOP} characters", "stop"
        )
    return tuple(stops)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        raise RequestError("stream_options must be an object", "stream_options")
    if options and not stream:
        raise RequestError("stream_options needs stream to be true", "stream_options")
    _check_nothing_else(options, {"include_usage", "include_obfuscation"}, "stream_options")
    if options.get("include_obfuscation"):
        raise RequestError("include_obfuscation is not supported", "stream_options.include_obfuscation")
    return _truth(options, "include_usage")


def _number(fields: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is in no range
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}, got {quote(value)}", name)
    return float(value)


def _integer(fields: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}, got {quote(value)}", name)
    return value


def _truth(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {quote(value)}", name)
    return bool(value)


# ---- messages


def _messages(fields: Mapping[str, Any], max_images: int) -> list[dict[str, Any]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("the field messages must be a list of messages", "messages")
    read = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if read[-1]["role"] != "user":
        raise RequestError("the last message must be the user's: an answer that has begun is not continued", "messages")
    parts = [part for message in read for part in message["content"]]
    if (images := sum(part["type"] == "image" for part in parts)) > max_images:
        raise RequestError(f"the messages have {images} images, more than the limit of {max_images} a request", "messages")
    characters = sum(len(part["text"]) for part in parts if part["type"] == "text")
    if characters > MAX_CHARACTERS:
        raise RequestError(
            f"the messages have {characters:,} characters, more than the limit of {MAX_CHARACTERS:,}", "messages"
        )
    return read


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(f"{place} must be an object", place)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{place}.role must be one of {', '.join(_ROLES)}, got {quote(role)}", f"{place}.role")
    for name, value in message.items():
        if name in _EMPTY_PARTS and value in (None, []) or name in _MESSAGE:
            continue
        raise RequestError(f"{place}: the field {quote(name)} is not supported", place)
    content = message.get("content")
    # As parts even where it is one text: "<image>" in it is a word, no place of an image.
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RequestError(f"{place}.content must be a text or a list of parts", f"{place}.content")
    read = [_part(part, f"{place}.content[{index}]", role) for index, part in enumerate(parts)]
    if role == "user" and not any(part["type"] == "image" or part["text"].strip() for part in read):
        raise RequestError(f"{place}.content is empty", f"{place}.content")
    return {"role": _ROLES[role], "content": read}


def _part(part: Any, place: str, role: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        _check_nothing_else(part, {"type", "text"}, place)
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{place}.text must be a text", place)
        return {"type": "text", "text": part["text"]}
    if kind != "image_url":
        raise RequestError(f"{place}.type must be text or image_url, got {quote(kind)}", place)
    if role != "user":
        raise RequestError(f"{place}: only messages of the user have images", place)
    _check_nothing_else(part, {"type", "image_url"}, place)
    image = part.get("image_url")
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise RequestError(f"{place}.image_url must be an object with the key url", place)
    _check_nothing_else(image, {"url", "detail"}, f"{place}.image_url")
    if image.get("detail") not in (None, *_DETAILS):
        raise RequestError(f"{place}.image_url.detail must be one of {', '.join(_DETAILS)}", place)
    return {"type": "image", "image": image["url"]}


def _check_nothing_else(fields: Mapping[str, Any], known: Collection[str], place: str) -> None:
    for name, value in fields.items():
        if name not in known and value is not None:
            raise RequestError(f"{place}: the field {quote(name)} is not supported", place)


def _choices(values: Sequence[Any]) -> str:
    return " or ".join(json.dumps(value) for value in values)
