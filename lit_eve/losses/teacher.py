"""The frozen CLIP whose patch features supervise the decoder's hidden states (training only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_eve.errors import CheckpointError, ConfigError, not_found
from lit_eve.processing.images import CLIP_STD
from lit_eve.processing.teacher_grid import TeacherGrid


class FrozenTeacher(nn.Module):
    """A CLIP vision transformer that only ever answers: no gradients, always in eval mode, never in a state dict.

    The layers behind the one that is read out are dropped, so that they cost neither memory nor time.

    Args:
        vision_model: a transformers ``CLIPVisionModel``.
        select_layer: which hidden state to return, as in LLaVA and EVE (-2: the output of the last layer but one). ``depth``
            is its number, counted from 0.
    """

    def __init__(self, vision_model: nn.Module, select_layer: int = -2) -> None:
        super().__init__()
        config = vision_model.config
        depth = config.num_hidden_layers + 1 + select_layer if select_layer < 0 else select_layer
        if not 0 <= depth <= config.num_hidden_layers:
            raise ConfigError(
                f"teacher_layer = {select_layer} does not exist: the teacher has {config.num_hidden_layers} layers"
            )
        self.width: int = config.hidden_size
        self.depth: int = depth
        self.grid = TeacherGrid(config.image_size, config.patch_size)
        self.std = CLIP_STD
        vision_model.encoder.layers = vision_model.encoder.layers[:depth]
        self.backbone = vision_model
        self.requires_grad_(False)
        super().train(False)
        self.register_load_state_dict_post_hook(_forget_missing_keys)

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
            pixels: (N, 3, C, C) float, normalised with CLIP's mean and deviation.
            every: return all hidden states from 0 (behind the first norm) to ``select_layer``, not this last one alone.

        Returns:
            (N, (C / patch)^2, width): row-major patches, without the class token; of each hidden state with ``every``.
        """
        output = self.backbone(pixels, output_hidden_states=every)
        return tuple(state[:, 1:] for state in output.hidden_states) if every else output.last_hidden_state[:, 1:]


def _forget_missing_keys(teacher: FrozenTeacher, incompatible: Any) -> None:
    """The teacher's own keys are absent from every checkpoint by design: a strict load must not miss them."""
    own = tuple(f"backbone.{name}" for name in teacher.backbone.state_dict())
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(own)]


def load_teacher(path: str | Path, select_layer: int = -2, **kwargs: Any) -> FrozenTeacher:
    """Load the vision half of a CLIP from a folder or hub name.

    Raises:
        CheckpointError: the folder or hub entry cannot be read as a CLIP, or lacks weights of its vision half.
    """
    from transformers import CLIPVisionModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a whole CLIP has a text half, which would be reported weight by weight
    try:
        vision_model, info = CLIPVisionModel.from_pretrained(path, output_loading_info=True, **kwargs)
    except (OSError, ValueError) as error:
        raise not_found("teacher", path, "CLIP that can be loaded", error) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"teacher {str(path)!r} is no CLIP: it lacks {missing[0]} and {len(missing) - 1} other weights")
    return FrozenTeacher(vision_model, select_layer)
