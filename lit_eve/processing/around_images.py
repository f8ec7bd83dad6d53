"""What stands in the text before and after each image: ``<img>`` and ``</img>`` of NEO and Mono-InternVL, and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from lit_eve.errors import ConfigError
from lit_eve.processing.sample import IMAGE_PLACEHOLDER
from lit_eve.processing.templates import Segment, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AroundImages:
    """Tokens before and after the slots of each image, whichever template writes the conversation; never supervised.

    An image in several views has one pair around all of them.

    Args:
        before: tokens of the tokenizer, one after another.
        after: the same.
        allow_text: what is none of the tokenizer's tokens is written as ordinary text.

    Raises:
        ConfigError: a value of another type.
    """

    before: str = ""
    after: str = ""
    allow_text: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            if type(value := getattr(self, field.name)).__name__ != field.type:
                raise ConfigError(f"around_images.{field.name} must be of type {field.type}, got {value!r}")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> AroundImages:
        """From a YAML or ``processor_config.json``; None stands for nothing.

        Raises:
            ConfigError: a key that there is not, or a value of another type.
        """
        known = [field.name for field in fields(cls)]
        for key in values or {}:
            if key not in known:
                raise ConfigError(f"around_images has no key {key!r}; it takes: {', '.join(known)}")
        return cls(**(values or {}))

    def __bool__(self) -> bool:
        return bool(self.before or self.after)

    def to_dict(self) -> dict[str, Any]:
        """The arguments."""
        return asdict(self)

    def segments(self, tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> tuple[list[Segment], list[Segment]]:
        """What comes before each image, and what comes after it.

        Raises:
            ConfigError: a piece that is no token of the tokenizer (the embedding table has no row for it), or a slot of images.
        """
        tokens = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if id != image_token_id}
        return self._split("before", tokens), self._split("after", tokens)

    def _split(self, key: str, tokens: Mapping[str, int]) -> list[Segment]:
        text = getattr(self, key)
        if IMAGE_PLACEHOLDER in text:
            raise ConfigError(f"around_images.{key}: {IMAGE_PLACEHOLDER} is the place of an image itself")
        segments = []
        for index, piece in enumerate(one_of(tuple(tokens)).split(text) if tokens else [text]):
            if index % 2:
                segments.append(Segment(piece, kind="special"))
            elif piece and self.allow_text:
                segments.append(Segment(piece))
            elif piece:
                raise ConfigError(
                    f"around_images.{key}: {piece!r} is no token of the tokenizer; it could be written as ordinary text "
                    "(allow_text: true), or added to the tokenizer and to the embeddings of the decoder"
                )
        return segments
