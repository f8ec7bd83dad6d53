"""What an official layout says of itself, and what the layouts have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedConfig

from lit_eve.errors import CheckpointError, one_line
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.config import EveConfig
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD

PREPROCESSOR = "preprocessor_config.json"

TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)
"""Keys of a decoder's config that every layout writes."""

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that the whole model has as well, in its own words."""

_ROPE = ("rope_theta", "rope_scaling")  # as older versions of transformers wrote them
_NOT_OF_THE_DECODER = (
    *("mm_", "tune_mm_", "use_mm_", "image_aspect_ratio", "requires_cliploss"),
    *("architectures", "model_type", "transformers_version", "torch_dtype", "freeze_", "_"),
)
_TABLE = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$|model\.vision_.*\.position_ids$")


class OfficialLayout(ABC):
    """The layout of a code base's checkpoints: config.json, preprocessor config, names and shapes of weights.

    "Theirs" is the official config.json; names of ours are those of :class:`~lit_eve.models.EveForConditionalGeneration`.
    """

    title: ClassVar[str]
    """What its models are called in messages."""
    patch_embedding: ClassVar[str]
    """Name of the patch embedding that its models have here."""
    size_key: ClassVar[str]
    """The argument of the geometry that ``image_size`` stands for."""
    teacher_prefixes: ClassVar[tuple[str, ...]] = ()
    """How names of a frozen teacher's weights begin, once for each copy of it."""
    names: ClassVar[NameTable]
    usual_sizes: ClassVar[Mapping[str, int]]
    """What the preprocessor config holds besides ``size_key``, in a checkpoint without one."""
    size_in_name: ClassVar[Sequence[str]]
    """Regular expressions that find the image size, their first group, in the name of the vision tower."""
    size_hint: ClassVar[str]
    """What such a name would look like, and how else the size can be told."""

    @abstractmethod
    def matches(self, theirs: Mapping[str, Any]) -> bool:
        """Whether a config.json is one of this code."""

    def read_config(self, folder: Path, image_size: int | None = None) -> EveConfig:
        """The official config.json, and the preprocessor config that it points to, as an :class:`EveConfig`.

        Args:
            folder: holds config.json.
            image_size: instead of what the checkpoint says.

        Raises:
            CheckpointError: a key is missing or unknown, or the image size cannot be told.
        """
        path = folder / "config.json"
        theirs = read_json(path)
        needed = ("mm_vision_tower", "mm_hidden_size", "num_hidden_layers")
        require_keys(path, theirs, needed, f", which every official {self.title} checkpoint has")
        sizes = self._read_sizes(folder, str(theirs["mm_vision_tower"]), image_size)
        return EveConfig(
            **self.read_parts(path, theirs, sizes),
            image_mean=sizes.get("image_mean", CLIP_MEAN),
            image_std=sizes.get("image_std", CLIP_STD),
            **{key: theirs.get(key) for key in ENDS},
        )

    @abstractmethod
    def read_parts(self, path: Path, theirs: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of :class:`EveConfig` that are not the same in all layouts.

        Args:
            path: of config.json.
            theirs: its content.
            sizes: what the preprocessor config says, or would.

        Raises:
            CheckpointError: a key is unknown.
        """

    def _read_sizes(self, folder: Path, tower: str, image_size: int | None) -> dict[str, Any]:
        wanted = {} if image_size is None else {self.size_key: image_size}
        path = folder / tower / PREPROCESSOR
        if path.exists():
            sizes = read_json(path)
            require_keys(path, sizes, (self.size_key, *self.usual_sizes), f": it is no preprocessor of {self.title}")
            self.check_sizes(path, sizes)
            return sizes | wanted
        for pattern in self.size_in_name:
            if match := re.search(pattern, tower):
                wanted = {self.size_key: int(match[1])} | wanted
        if not wanted:
            raise CheckpointError(
                f"{folder}: the image size cannot be told: config.json names the vision tower {tower!r}, there is no {path}, "
                f"and {self.size_hint}"
            )
        return {**self.usual_sizes, **wanted}

    def check_sizes(self, path: Path, sizes: Mapping[str, Any]) -> None:
        """Raise CheckpointError for what a preprocessor config says and no model of this code has."""
        return

    @abstractmethod
    def write_config(self, config: EveConfig, dtype: str) -> dict[str, Any]:
        """The official config.json of an architecture, with every key that the official code reads.

        Args:
            config: the architecture.
            dtype: of the weights, as in "bfloat16".

        Raises:
            CheckpointError: the official code cannot express it; the message names the key.
        """

    @abstractmethod
    def write_preprocessor(self, config: EveConfig) -> dict[str, Any]:
        """The preprocessor config that ``mm_vision_tower`` stands for."""

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

    @abstractmethod
    def export_value(self, name: str, value: Tensor, config: EveConfig) -> Tensor:
        """One of our weights in the official shape; the inverse of :meth:`import_value`."""

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

    def notes(self, folder_name: str, files: Iterable[str]) -> list[str]:
        """What the official code asks of a written folder and is not so, a sentence each."""
        return []

    def check(self, possible: Iterable[tuple[str, Any, Sequence[Any]]]) -> None:
        """Compare what the official code can be told.

        Args:
            possible: (key, value that is asked for, values that there are).

        Raises:
            CheckpointError: a value is none of these.
        """
        for key, found, known in possible:
            if found not in known:
                choices = " or ".join(map(repr, known))
                raise CheckpointError(f"the official {self.title} code has no model with {key} = {found!r}, only {choices}")


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


def read_text_config(path: Path, theirs: Mapping[str, Any], kind: type[PreTrainedConfig], family: str) -> PreTrainedConfig:
    """The decoder's part of an official config.json, which has it among the other keys.

    Raises:
        CheckpointError: it describes no such decoder.
    """
    # Of the decoder's own keys only: official trainings add others, such as vision_tower_lr.
    known = {key for key in (*kind().to_dict(), *TEXT_KEYS, *_ROPE) if not key.startswith(_NOT_OF_THE_DECODER)}
    try:
        return kind(**{key: value for key, value in theirs.items() if key in known and value is not None})
    except Exception as error:  # transformers has several of its own for values of the wrong kind
        raise CheckpointError(f"{path} describes no {family}: {one_line(error)}") from error


def is_square_kernel(value: Tensor) -> bool:
    """Whether a tensor is the kernel of a convolution over squares: (out, in, s, s)."""
    return value.ndim == 4 and value.shape[2] == value.shape[3]


def is_pixel_kernel(value: Tensor) -> bool:
    """Whether a tensor is the kernel of a convolution over squares of RGB pixels: (out, 3, s, s)."""
    return is_square_kernel(value) and value.shape[1] == 3


def require_keys(path: Path, found: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    """Raise a CheckpointError that names the first key which ``found`` lacks."""
    if absent := [key for key in keys if found.get(key) is None]:
        raise CheckpointError(f"{path} has no {absent[0]!r}{what}")


def _translate(name: str, table: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, replacement in table:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return None
