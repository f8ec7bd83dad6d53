"""What an official layout says of itself, and what the layouts have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.config import EveConfig

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a decoder's config that the whole model has as well, in its own words."""

_TABLE = re.compile(r"(language_model\.)?model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$|model\.vision_.*\.position_ids$")


class OfficialLayout(ABC):
    """The layout of a code base's checkpoints: config.json, names and shapes of weights.

    "Theirs" is the official config.json; names of ours are those of :class:`~lit_eve.models.EveForConditionalGeneration`.
    """

    title: ClassVar[str]
    """What its models are called in messages."""
    names: ClassVar[NameTable]
    template: ClassVar[str] = "vicuna_v1"
    """How its models were trained to converse."""
    special_tokens: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What its models take the tokenizer's special tokens to be (``eos_token``, ...), where its own files do not say so."""

    @abstractmethod
    def matches(self, theirs: Mapping[str, Any]) -> bool:
        """Whether a config.json is one of this code."""

    @abstractmethod
    def read_config(self, folder: Path, image_size: int | None = None) -> EveConfig:
        """The official config.json, and what it points to, as an :class:`EveConfig`.

        Args:
            folder: holds config.json.
            image_size: instead of what the checkpoint says.

        Raises:
            CheckpointError: a key is missing or unknown, or the image size cannot be told.
        """

    def bound_to(self, folder: Path) -> OfficialLayout:
        """The layout of the weights in a folder, where other files in there tell more of it than config.json.

        Raises:
            CheckpointError: they do not.
        """
        return self

    def import_name(self, key: str) -> str | None:
        """Our name of an official weight; None for a frozen teacher's, which is read from its own folder, and for tables of
        constants, which follow from the config.

        Raises:
            CheckpointError: there is no such weight.
        """
        if self.is_teacher(key) or self.is_table(key):
            return None
        if (name := self.names.inward(key)) is None:
            raise CheckpointError(f"{key!r} is no weight of an official {self.title} checkpoint")
        return name

    def export_name(self, name: str, theirs: Mapping[str, Any]) -> str:
        """The official name of one of our weights; the inverse of :meth:`import_name`.

        Raises:
            CheckpointError: the official code has no place for it.
        """
        if (key := self.names.outward(name)) is None:
            raise CheckpointError(f"the official {self.title} code has no place for the weight {name!r}")
        return key

    @abstractmethod
    def import_value(self, name: str, value: Tensor) -> Tensor:
        """An official weight, by our name, in our shape; one that is no such kernel as it should be stays as it is."""

    def import_weight(self, key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """An official weight under our name and in our shape; nothing for those that we do not keep."""
        if (name := self.import_name(key)) is not None:
            yield name, self.import_value(name, value)

    def is_teacher(self, key: str) -> bool:
        """Whether an official weight is one of a frozen teacher's."""
        return False

    def is_table(self, key: str) -> bool:
        """Whether it is a constant that old versions of transformers saved: rotary frequencies, position numbers."""
        return bool(_TABLE.match(key))


class NameTable:
    """Beginnings of names in two layouts; the first that fits decides.

    Args:
        pairs: (theirs, ours); # is a number.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._inward, self._outward = (
            [
                (re.compile(re.escape(pair[source]).replace(r"\#", r"(\d+)")), pair[1 - source].replace("#", r"\1"))
                for pair in pairs
            ]
            for source in (0, 1)
        )

    def inward(self, key: str) -> str | None:
        """Our name; None where no beginning fits."""
        return _translate(key, self._inward)

    def outward(self, name: str) -> str | None:
        """Their name; None where no beginning fits."""
        return _translate(name, self._outward)


def is_square_kernel(value: Tensor) -> bool:
    """Whether a tensor is the kernel of a convolution over squares: (out, in, s, s)."""
    return value.ndim == 4 and value.shape[2] == value.shape[3]


def is_pixel_kernel(value: Tensor) -> bool:
    """Whether a tensor is the kernel of a convolution over squares of RGB pixels: (out, 3, s, s)."""
    return is_square_kernel(value) and value.shape[1] == 3


def image_processor_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The settings of a folder's image processor and their file: that of today's transformers, or that of the hub.

    Returns:
        The file that holds settings of images, and these without those that are null; ``config.json`` and none where no file
        does.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        found = read_json(folder / name) if (folder / name).is_file() else {}
        found = found.get("image_processor", found)
        if "image_mean" in found or "size" in found:
            return folder / name, {key: value for key, value in found.items() if value is not None}
    return folder / "config.json", {}


def require_keys(path: Path, found: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    """Raise a CheckpointError that names the first key which ``found`` lacks."""
    if absent := [key for key in keys if found.get(key) is None]:
        raise CheckpointError(f"{path} has no {absent[0]!r}{what}")


def _translate(name: str, table: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, replacement in table:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return None
