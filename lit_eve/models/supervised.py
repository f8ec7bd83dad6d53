"""What a model has in training alone: the frozen teacher and the heads of its supervisions; saved beside it, loaded, run.

Notation: N images, P patches, p side of a patch, C teacher image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.files import local_path
from lit_eve.losses import ALIGNERS, FrozenTeacher, load_teacher
from lit_eve.models.checkpoints.heads import head_file, split_heads
from lit_eve.models.checkpoints.skeletons import check_unsaved
from lit_eve.models.own import note_import, note_supervisions
from lit_eve.models.pretrained import EvePreTrainedModel
from lit_eve.models.splice import ImageLayout
from lit_eve.models.supervision import (
    ImageBatch,
    Supervision,
    Supervisor,
    Weight,
    build_supervision,
    check_entries,
    entries_of,
    weight_at,
)
from lit_eve.processing import ImageGeometry
from lit_eve.processing.images import normalize_pixels

RESERVED = ("model", "auxiliary", "loss", "teacher", "aligner")  # files of a saved model, names of logs and of parts
OWN_TERMS = ("language_loss", "token_accuracy")


class SupervisedModel(EvePreTrainedModel):
    """A model to which supervisions can be attached. A subclass calls :meth:`without_supervision` in its constructor."""

    supervisions: dict[str, Supervision]
    supervision_weights: dict[str, Weight]
    aligner: nn.Module | None  # the head of patch alignment
    teacher: FrozenTeacher | None
    geometry: ImageGeometry

    def without_supervision(self) -> None:
        """A model as it answers: no heads, no teacher."""
        self.supervisions, self.supervision_weights, self.aligner, self.teacher = {}, {}, None, None

    def attach_teacher(self, teacher: FrozenTeacher | str | Path, aligner: dict[str, Any] | None = None) -> None:
        """:meth:`attach_supervision` with a teacher."""
        self.attach_supervision(teacher, aligner)

    def attach_supervision(
        self, teacher: FrozenTeacher | str | Path | None = None, aligner: dict[str, Any] | None = None
    ) -> None:
        """Add the heads of ``config.supervision`` and the frozen teacher; the next forward returns their losses.

        Args:
            teacher: the teacher, or the folder or hub name of a vision encoder. Without ``config.supervision``, it means patch
                alignment.
            aligner: ``{"name": ..., **arguments}`` of patch alignment; default: the config's, else ``layerwise``.

        Raises:
            ConfigError: the teacher's grid does not lie on the geometry's, or a supervision is unknown or lacks its teacher.
            CheckpointError: there is no vision encoder at that place.
        """
        if teacher is not None and not isinstance(teacher, FrozenTeacher):
            self.config.teacher = str(teacher)
            sizes = self.config.teacher_layer, self.config.teacher_image_size
            teacher = load_teacher(teacher, *sizes, dtype=self.dtype)
        if teacher is not None:
            teacher.grid.tokens_per_patch(self.geometry)  # says whether it lies on the student's
        if aligner is not None:
            self.config.aligner = dict(aligner)
        note_supervisions(self.config)
        check_entries(self.config.supervision or ())
        for part in self.supervisions:
            setattr(self, part, None)
        self.supervisions, self.supervision_weights = {}, {}
        for part, entry in entries_of(self.config, teacher is not None).items():
            if getattr(self, part, None) is not None or entry["name"] in RESERVED:
                raise ConfigError(f"supervision {entry['name']!r}: the model has a part of that name; choose another name")
            if part == "aligner":
                self.config.aligner = entry["aligner"]
                note_import(self.config, "aligner", ALIGNERS)
            build = lambda entry=entry: build_supervision(entry, self.config, teacher)  # noqa: E731
            supervision = build()
            check_unsaved(supervision.head, lambda build=build: build().head, f"supervision {entry['name']!r}")
            setattr(self, part, supervision.head.to(device=self.device, dtype=self.dtype))
            self.supervisions[part], self.supervision_weights[part] = supervision, entry.get("weight", 1.0)
        if len({one.term for one in self.supervisions.values()} | set(OWN_TERMS)) < len(self.supervisions) + len(OWN_TERMS):
            raise ConfigError("supervision: two losses have the same name (`term`)")
        self.teacher = None if teacher is None else teacher.to(self.device)

    @contextmanager
    def supervised_by(self, *parts: str) -> Iterator[None]:
        """For a while, only the supervisions with these heads are run, each with the weight 1."""
        attached = self.supervisions, self.supervision_weights
        self.supervisions, self.supervision_weights = {part: attached[0][part] for part in parts}, dict.fromkeys(parts, 1.0)
        try:
            yield
        finally:
            self.supervisions, self.supervision_weights = attached

    def save_pretrained(self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs: Any) -> None:
        """Write a transformers folder that needs no teacher; each head of a supervision goes into a file beside the weights."""
        save_directory = local_path(save_directory)
        weights = self.state_dict() if state_dict is None else state_dict
        weights, heads = split_heads(weights, self.supervisions)
        super().save_pretrained(save_directory, state_dict=weights, **kwargs)
        if kwargs.get("is_main_process", True):
            for part, head in heads.items():
                save_file({key: value.contiguous() for key, value in head.items()}, head_file(save_directory, part))

    def load_heads(self, folder: str | Path) -> list[str]:
        """Give the attached heads the weights that were saved in ``folder``.

        Returns:
            The heads for which there were none.

        Raises:
            CheckpointError: they belong to other heads.
        """
        missing = []
        for part, supervision in self.supervisions.items():
            if not (path := head_file(folder, part)).exists():
                missing += [part] * bool(supervision.head.state_dict())
                continue
            try:
                supervision.head.load_state_dict(load_file(path))
            except RuntimeError as error:
                what = f"aligner {self.config.aligner}" if part == "aligner" else f"supervision {part!r}"
                raise CheckpointError(f"{path} does not fit the {what}: {error}") from error
        return missing

    def _normalized(self, pixel_values: Tensor, dtype: torch.dtype) -> Tensor:
        if pixel_values.dtype != torch.uint8:
            return pixel_values.to(dtype)
        pixels = pixel_values.unflatten(1, (3, -1))  # (P, 3, p * p)
        return normalize_pixels(pixels, self.config.image_mean, self.config.image_std, dtype).flatten(1)

    def _supervisor(
        self,
        layout: ImageLayout,
        image_grid_hw: Tensor,
        pixel_values: Tensor,
        teacher_pixel_values: Tensor | None,
        teacher_features: Tensor | None,
        image_seeds: Tensor | None,
        progress: float,
    ) -> Supervisor:
        grid = None if self.teacher is None else self.teacher.grid
        patches = lambda: self._normalized(pixel_values, torch.float32)  # noqa: E731
        images = ImageBatch(layout, image_grid_hw, self.geometry, grid, patches, image_seeds, teacher_pixel_values)
        weights = {part: weight_at(weight, progress) for part, weight in self.supervision_weights.items()}
        return Supervisor(self.supervisions, weights, self.teacher, images, teacher_pixel_values, teacher_features)
