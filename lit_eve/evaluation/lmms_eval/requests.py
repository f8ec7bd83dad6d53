"""What lmms-eval asks, in the terms of lit_eve. lmms-eval itself is not needed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import GenerationConfig
from transformers.utils import logging

from lit_eve.errors import ConfigError, SampleError
from lit_eve.evaluation.generation import Query
from lit_eve.processing.images import load_image
from lit_eve.processing.inputs import image_names, images_of
from lit_eve.processing.sample import IMAGE_PLACEHOLDER
from lit_eve.processing.sources import ImageSource

MAX_NEW_TOKENS = 1024
"""Length of the longest answer where a task does not say it, as for lmms-eval's own LLaVA."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_VIDEOS = {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
_SOUNDS = {".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}

logger = logging.get_logger(__name__)


def simple_query(context: str, visuals: Sequence[Any] | None, name: str) -> Query:
    """A text and what ``doc_to_visual`` gave: the images stand at ``<image>`` in the text, or before it.

    Raises:
        SampleError: something else than images, or other places than images; it begins with ``name``.
    """
    visuals = list(visuals or ())
    places = context.count(IMAGE_PLACEHOLDER)
    if visuals and places not in (0, len(visuals)):
        raise SampleError(f"{name}: the text has {places} places for images (<image>), but there are {len(visuals)} images")
    images = _load([_image_part(visual, name)["image"] for visual in visuals], name)
    question = context if images else [_user(context)]  # without images, <image> is a word like others
    return Query(images, question, name)


def chat_query(messages: Sequence[Mapping[str, Any]], name: str) -> Query:
    """A conversation as ``doc_to_messages`` gives it, with images among the parts of its messages.

    Raises:
        SampleError: something else than texts and images; it begins with ``name``.
    """
    conversation = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        conversation.append({"role": message["role"], "content": [_chat_part(part, name) for part in parts]})
    return Query(_load(images_of(conversation), name), conversation, name)


def generation_arguments(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The ``generation_kwargs`` of a task as stop strings, and as arguments of ``answer_all``.

    As with lmms-eval's own models, a temperature of 0 is greedy, and one above 0 samples unless the task says
    ``do_sample: false``. What ``generate`` does not know (``image_aspect_ratio`` and other hints for single models) is named
    once and left out.

    Raises:
        ConfigError: a stop string is no text.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    until = settings.pop("until", ())
    until = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(term, str) for term in until):
        raise ConfigError(f"generation_kwargs.until must be a text or a list of texts, got {until!r}")
    temperature = settings.get("temperature")
    samples = settings.pop("do_sample", bool(temperature)) and temperature != 0
    known = GenerationConfig()
    arguments = {}
    for key, value in settings.items():
        if not hasattr(known, key):
            logger.warning_once(f"lit_eve leaves out generation_kwargs.{key}={value!r}: generate has no such argument")
        elif samples or key not in _SAMPLING:
            arguments[key] = value
    return tuple(filter(None, until)), {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": samples, **arguments}


def cut(answer: str, until: Sequence[str]) -> str:
    """The answer up to the first stop string, without outer blanks."""
    for term in until:
        answer = answer.split(term)[0]
    return answer.strip()


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _chat_part(part: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if part["type"] == "text":
        return part
    if part["type"] != "image":
        raise _refusal(part["type"], name)
    return _image_part(part["url"], name)


def _image_part(source: Any, name: str) -> dict[str, Any]:
    if isinstance(source, Mapping):  # a medium with its type, or the samples of a sound
        kind = source.get("type", "audio" if "array" in source else "video")
        source = source.get("url") or source.get("path") if kind == "image" else None
        if source is None:
            raise _refusal(kind, name)
    if isinstance(source, str | Path) and not str(source).startswith("data:"):
        suffix = Path(str(source)).suffix.lower()
        if suffix in _VIDEOS | _SOUNDS:
            raise _refusal(f"{'video' if suffix in _VIDEOS else 'audio'} ({source})", name)
    elif not isinstance(source, str | bytes | Image.Image):
        raise _refusal(type(source).__name__, name)
    return {"type": "image", "image": source}


def _load(sources: Sequence[Any], name: str) -> list[ImageSource]:
    return [load_image(source, at) for source, at in zip(sources, image_names(name, len(sources)), strict=True)]


def _refusal(what: str, name: str) -> SampleError:
    return SampleError(f"{name}: lit_eve reads texts and images, but the task brings {what}")
