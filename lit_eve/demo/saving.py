"""A conversation as a file: LLaVA's JSON with the images beside it, which ``lit-eve pack`` reads again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import LitEveError
from lit_eve.files import write_atomically
from lit_eve.processing.sample import IMAGE_PLACEHOLDER

_FROM = {"user": "human", "assistant": "gpt"}


def save_conversation(messages: Sequence[Mapping[str, Any]], file: Path) -> int:
    """Write a list of one LLaVA record, whose tokens are those that the model read and wrote.

    Args:
        messages: in the format of transformers, with open images.
        file: is made; the images lie in a folder beside it, named after it, and are named relative to its folder.

    Returns:
        the number of images.

    Raises:
        LitEveError: there is nothing to write, the place is taken or cannot be written, or LLaVA's format cannot hold it.
    """
    if not messages:
        raise LitEveError("nothing was asked yet, so that there is nothing to save")
    folder = file.with_name(f"{file.stem}_images")
    for place in (file, folder):
        if place.exists():
            raise LitEveError(f"{place} exists already: choose another name")
    turns, images = [], []
    for number, message in enumerate(messages):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = [part["image"] for part in parts if part["type"] == "image"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        if IMAGE_PLACEHOLDER in text:
            raise LitEveError(
                f"turn {number // 2 + 1} has {IMAGE_PLACEHOLDER} in its text, which LLaVA's format reads as an image"
            )
        places = IMAGE_PLACEHOLDER * len(pictures) + "\n" * bool(pictures)  # a newline as the model read it
        turns.append({"from": _FROM[message["role"]], "value": places + text})
        images += pictures
    names = [f"{folder.name}/{number}.png" for number in range(1, len(images) + 1)]
    record: dict[str, Any] = {"id": file.stem, "conversations": turns}
    if names:
        record["image"] = names[0] if len(names) == 1 else names
    try:
        for name, image in zip(names, images, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(file.parent / name)
        write_atomically(file, json.dumps([record], ensure_ascii=False, indent=2) + "\n")
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that is no text
        raise LitEveError(f"{file} cannot be written: {getattr(error, 'strerror', error)}") from error
    return len(images)
