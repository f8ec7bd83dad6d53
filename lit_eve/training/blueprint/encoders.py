"""A vision encoder that a recipe names: its config, and whether its files are whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedConfig

from lit_eve.models.checkpoints.catalog import known_tower
from lit_eve.models.checkpoints.towers import check_tower
from lit_eve.vision_towers import Normalization, family_of, other_resampling, read_tower


@dataclass(frozen=True)
class NamedEncoder:
    """A vision encoder by name.

    Args:
        name: folder or hub name.
    """

    key: ClassVar[str]
    """Of the YAML that names it, for error messages."""

    name: str

    def read(self, planned: bool = False) -> tuple[PreTrainedConfig, Normalization]:
        """Its config and normalisation; well-known ones are taken from a list where a training is only planned."""
        if planned and (known := known_tower(self.name)):
            return known, family_of(known).pixels
        return self._read

    @cached_property
    def _read(self) -> tuple[PreTrainedConfig, Normalization]:
        return read_tower(self.name, self.key)

    def check_files(self) -> None:
        """Raise CheckpointError for files and weights that are missing, damaged or of another shape."""
        check_tower(self.name, self.key)
        if (other := other_resampling(self.name, self.key)) is not None:
            rank_zero_warn(
                f"{self.key}: {self.name} was trained with images that a {other} filter resized; here they are resized with a "
                "bicubic one, so it sees them a little sharper or softer than it is used to"
            )
