"""What the official codes of EVE have in common: a vision tower that is a preprocessor config, and that we write them back."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedConfig

from lit_eve.errors import CheckpointError, one_line
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.checkpoints.official.base import ENDS, OfficialLayout, require_keys
from lit_eve.models.config import EveConfig
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD

PREPROCESSOR = "preprocessor_config.json"

TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *(*ENDS, "tie_word_embeddings"),
)
"""Keys of a decoder's config that both layouts write."""

_ROPE = ("rope_theta", "rope_scaling")  # as older versions of transformers wrote them
_NOT_OF_THE_DECODER = (
    *("mm_", "tune_mm_", "use_mm_", "image_aspect_ratio", "requires_cliploss"),
    *("architectures", "model_type", "transformers_version", "torch_dtype", "freeze_", "_"),
)


class EveLayout(OfficialLayout):
    """A layout that is read and written: config.json has the decoder's keys among its own, and names a vision tower."""

    patch_embedding: ClassVar[str]
    """Name of the patch embedding that its models have here."""
    size_key: ClassVar[str]
    """The argument of the geometry that ``image_size`` stands for."""
    teacher_prefixes: ClassVar[tuple[str, ...]] = ()
    """How names of a frozen teacher's weights begin, once for each copy of it."""
    usual_sizes: ClassVar[Mapping[str, int]]
    """What the preprocessor config holds besides ``size_key``, in a checkpoint without one."""
    size_in_name: ClassVar[Sequence[str]]
    """Regular expressions that find the image size, their first group, in the name of the vision tower."""
    size_hint: ClassVar[str]
    """What such a name would look like, and how else the size can be told."""

    def read_config(self, folder: Path, image_size: int | None = None) -> EveConfig:
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

    @abstractmethod
    def export_value(self, name: str, value: Tensor, config: EveConfig) -> Tensor:
        """One of our weights in the official shape; the inverse of :meth:`import_value`."""

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
