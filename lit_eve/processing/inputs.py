"""The many ways in which callers of transformers hand over images and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers.tokenization_utils_base import LARGE_INTEGER

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.sources import SOURCE_KEYS


def is_single(conversation: Sequence[Any]) -> bool:
    """Whether this is one conversation, not a list of them."""
    return not conversation or isinstance(conversation[0], Mapping)


def images_of(conversation: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the image parts of a conversation in the format of transformers (or OpenAI) point to, in order.

    Raises:
        SampleError: a part says that it is an image, and does not say which.
    """
    images = []
    for message in conversation:
        content = message.get("content")
        for part in content if isinstance(content, Sequence) and not isinstance(content, str) else ():
            if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
                continue
            key = next((key for key in SOURCE_KEYS if part.get(key) is not None), None)
            if key is None:
                raise SampleError(f"an image of the conversation needs one of the keys {', '.join(SOURCE_KEYS)}")
            source = part[key]
            if key == "base64":
                source = {key: source}  # what else it looks like, it is no path
            elif isinstance(source, Mapping) and "url" in source:  # OpenAI
                source = source["url"]
            images.append(source)
    return images


def check_prompts(text: Any) -> Sequence[str]:
    """Finished prompts, one or several, as a list.

    Raises:
        ConfigError: something else, or none.
    """
    prompts = [text] if isinstance(text, str) else text
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        what = "an empty list" if isinstance(prompts, list | tuple) and not prompts else type(text).__name__
        raise ConfigError(f"text must be a text or a list of texts (messages go into conversation=...), got {what}")
    return prompts


def flatten(images: Any) -> list[Any]:
    """All images of what ``deal`` takes, in order."""
    rows = images if isinstance(images, list | tuple) else [images]
    rows = list(images) if getattr(images, "ndim", None) == 4 else rows
    return [image for row in rows for image in (row if isinstance(row, list | tuple) else [row])]


def deal(images: Any, places: Sequence[int]) -> list[list[Any]]:
    """Images for each prompt: a nested list as it is; a flat one is dealt out by the number of places.

    Raises:
        SampleError: there are more or fewer images than places.
    """
    if images is None:
        images = []
    elif getattr(images, "ndim", None) == 4:  # a batch of arrays
        images = list(images)
    elif not isinstance(images, list | tuple):
        images = [images]
    if images and all(isinstance(row, list | tuple) for row in images):
        if len(images) != len(places):
            raise SampleError(f"there are {len(places)} prompts, but images for {len(images)}")
        return [list(row) for row in images]
    if len(images) != sum(places):
        raise SampleError(f"the text has {sum(places)} places for images (<image>), but there are {len(images)} images")
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in places]


def image_names(key: str, count: int) -> list[str]:
    """What error messages call the images of a sample."""
    return [key] if count == 1 else [f"{key}, image {index + 1} of {count}" for index in range(count)]


@dataclass(frozen=True)
class Padding:
    """How prompts of different length become rows of one length.

    Args:
        padding: True or "longest"; "max_length"; False or "do_not_pad" leaves rows as they are, which lists allow, but not
            tensors.
        padding_side: where the padding goes; ``generate`` needs it on the left.
        pad_to_multiple_of: the length of padded rows is a multiple of it.
        max_length: for ``padding="max_length"`` and ``truncation``; by default the longest that the tokenizer names.
        truncation: True refuses prompts that are longer than ``max_length``. None is ever cut, as images would be, and the
            end, which asks for the answer.

    Raises:
        ConfigError: another value.
    """

    padding: bool | str = True
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    max_length: int | None = None
    truncation: bool | str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("padding", self.padding, (True, "longest", "max_length", False, "do_not_pad")),
            ("padding_side", self.padding_side, ("left", "right")),
            ("truncation", self.truncation, (None, False, "do_not_truncate", True, "longest_first", "only_first")),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        for name in ("pad_to_multiple_of", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Padding:
        """From arguments of a processor, those grouped as ``text_kwargs`` included; None stands for the default.

        Raises:
            TypeError: an argument that is none.
        """
        options = {**options, **(options.get("text_kwargs") or {})}
        options.pop("text_kwargs", None)
        options = {key: value for key, value in options.items() if value is not None}
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in options if key not in known]:
            raise TypeError(
                f"the processor takes no argument {', '.join(unknown)}: those of generate go to generate (of a pipeline, into "
                "generate_kwargs={...}), those of a chat template into template={'name': 'chat', 'arguments': {...}}"
            )
        return cls(**options)

    def width(self, lengths: Sequence[int], keys: Sequence[str], model_max_length: int) -> int:
        """The length of the rows; 0 if they keep their own.

        Args:
            lengths: of the rows, in tokens.
            keys: their names in error messages.
            model_max_length: what the tokenizer takes; a huge number if it does not say.

        Raises:
            SampleError: a row is longer than ``max_length``, where that counts.
        """
        limit = self.max_length or model_max_length
        if self.truncation not in (None, False, "do_not_truncate"):
            for length, key in zip(lengths, keys, strict=True):
                if length > limit:
                    raise SampleError(f"{key} has {length} tokens, more than the {limit} of max_length; prompts are never cut")
        if self.padding in (False, "do_not_pad"):
            return 0
        width = max(lengths)
        if self.padding == "max_length":
            if limit > LARGE_INTEGER:
                raise ConfigError("padding='max_length' needs a max_length: the tokenizer names none")
            width = max(width, limit)
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple


def pad_rows(
    rows: Sequence[Sequence[int]], pad: int, side: str = "left", width: int | None = None
) -> dict[str, list[list[int]]]:
    """``input_ids`` and ``attention_mask`` of rows of ids.

    Args:
        rows: token ids, of any lengths.
        pad: the id that fills up short rows; masked.
        side: where it goes, "left" or "right".
        width: up to which length; that of the longest row by default, and rows that are as long stay as they are.
    """
    width = max(map(len, rows)) if width is None else width
    input_ids, attention_mask = [], []
    for row in rows:
        filler = [pad] * (width - len(row))
        zeros, ones = [0] * len(filler), [1] * len(row)
        input_ids.append([*filler, *row] if side == "left" else [*row, *filler])
        attention_mask.append(zeros + ones if side == "left" else ones + zeros)
    return {"input_ids": input_ids, "attention_mask": attention_mask}
