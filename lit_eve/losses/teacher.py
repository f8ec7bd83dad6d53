"""The frozen vision encoder whose patch features supervise the decoder's hidden states (training only)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lit_eve.errors import LitEveError
from lit_eve.processing.images import normalize_pixels
from lit_eve.processing.teacher_grid import TeacherGrid
from lit_eve.vision_towers import Normalization, cut_tower, depth_of, family_of, load_tower, patch_states, read_tower


class FrozenTeacher(nn.Module):
    """A vision transformer that only ever answers: no gradients, always in eval mode, never in a state dict.

    The layers behind the one that is read out are dropped, so that they cost neither memory nor time.

    Args:
        vision_model: vision half of a family of :mod:`lit_eve.vision_towers`, of transformers. It is cut in place.
        select_layer: which hidden state to return, as in LLaVA and EVE (-2: the output of the last layer but one). ``depth``
            is its number, counted from 0. The norm behind the last layer belongs to none.
        image_size: side of the squares that it sees; default: its config's. Positions are interpolated as in transformers.
        pixels: normalisation of its pixels; default: its family's.
    """

    def __init__(
        self,
        vision_model: nn.Module,
        select_layer: int = -2,
        image_size: int | None = None,
        pixels: Normalization | None = None,
    ) -> None:
        super().__init__()
        self._set_sizes(vision_model.config, select_layer, image_size, pixels)
        self.backbone = cut_tower(vision_model, self.depth)
        self.requires_grad_(False)
        super().train(False)
        self.register_load_state_dict_post_hook(_forget_missing_keys)

    def _set_sizes(
        self, config: PreTrainedConfig, select_layer: int, image_size: int | None, pixels: Normalization | None
    ) -> None:
        self.depth: int = depth_of(config, select_layer, "teacher_layer")
        self.width: int = config.hidden_size
        pixels = pixels or family_of(config).pixels
        self.grid = TeacherGrid(image_size or config.image_size, config.patch_size, pixels.mean)
        self.std = pixels.std

    @property
    def config(self) -> PreTrainedConfig:
        """Of the vision transformer."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return self.backbone.dtype

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode whatever ``mode`` says."""
        return self

    def state_dict(self, *args: Any, destination: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Empty: the teacher is named by its folder, not saved with the student."""
        return {} if destination is None else destination

    @torch.no_grad()
    def forward(self, pixels: Tensor, every: bool = False) -> Tensor | tuple[Tensor, ...]:
        """Patch features of normalised square images.

        Args:
            pixels: (N, 3, C, C) float, normalised with the teacher's mean and deviation.
            every: return all hidden states from 0 (what the first layer reads) to ``select_layer``, not this last one alone.

        Returns:
            (N, (C / patch)^2, width): row-major patches, without class and register tokens; of each hidden state with
            ``every``.
        """
        states = patch_states(self.backbone, pixels, every)
        return states if every else states[-1]

    def states_of(self, pixels: Tensor, needed: Collection[int]) -> dict[int, Tensor]:
        """Hidden states at the patches of (N, 3, C, C) uint8 squares, by number: (N, P, width) each."""
        if not len(pixels):
            return dict.fromkeys(needed, pixels.new_zeros(0, self.grid.side**2, self.width, dtype=self.dtype))
        pixels = normalize_pixels(pixels, self.grid.mean, self.std, self.dtype)
        if {*needed} == {self.depth}:
            return {self.depth: self(pixels)}
        return dict(enumerate(self(pixels, every=True)))


class AbsentTeacher(FrozenTeacher):
    """A teacher whose features are in the shards: its sizes are known, and it has no weights.

    Args: as :class:`FrozenTeacher`, with a config in the place of the vision model.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        select_layer: int = -2,
        image_size: int | None = None,
        pixels: Normalization | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._set_sizes(config, select_layer, image_size, pixels)
        self._config = config

    @property
    def config(self) -> PreTrainedConfig:
        return self._config

    def forward(self, pixels: Tensor, every: bool = False) -> Tensor | tuple[Tensor, ...]:
        """Not possible."""
        raise LitEveError("the teacher is not loaded, as its features should be in the shards; this batch brings none")


def _forget_missing_keys(teacher: FrozenTeacher, incompatible: Any) -> None:
    """The teacher's own keys are absent from every checkpoint by design: a strict load must not miss them."""
    own = tuple(f"backbone.{name}" for name in teacher.backbone.state_dict())
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(own)]


def load_teacher(
    path: str | Path, select_layer: int = -2, image_size: int | None = None, key: str = "teacher", **kwargs: Any
) -> FrozenTeacher:
    """Load the vision half of a CLIP, SigLIP, DINOv2 or DINOv3 from a folder or hub name.

    Args:
        path: folder or hub name.
        select_layer, image_size: as in :class:`FrozenTeacher`.
        key: the setting that holds ``path``, for messages.
        **kwargs: for ``from_pretrained``.

    Raises:
        CheckpointError: there is none, or it lacks weights.
        ConfigError: there is no such layer, or images of that size are not made of whole patches.
    """
    config, pixels = read_tower(path, key)
    return FrozenTeacher(load_tower(path, config, key, **kwargs), select_layer, image_size, pixels)
