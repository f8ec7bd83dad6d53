"""Supervision: losses at image tokens beside the next-token loss, each with a head of its own, in training alone.

Notation: B rows, T tokens per row, D decoder width, L decoder layers, N images, P patches, p side of a patch, Q image tokens,
M places whose hidden states are read, K teacher width, C teacher image size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses import (
    ALIGNERS,
    FrozenTeacher,
    LayerwiseHeads,
    Term,
    distillation_loss,
    next_patch_loss,
    patch_alignment_loss,
)
from lit_eve.losses.terms import Count
from lit_eve.models.checkpoints.heads import part_of
from lit_eve.models.config import EveConfig
from lit_eve.models.splice import ImageLayout, TeacherCells
from lit_eve.models.taps import hidden_state_taps
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.processing.images import normalize_pixels
from lit_eve.processing.teacher_grid import TeacherGrid
from lit_eve.registry import Registry

CONTEXT = ("hidden_size", "num_layers", "geometry", "teacher_width", "teacher_depth")
"""Arguments of supervisions that come from the model."""


@dataclass(frozen=True)
class ImageBatch:
    """The images of a batch, for supervisions; what is derived is computed once, on first use."""

    layout: ImageLayout
    image_grid_hw: Tensor  # (N, 2) int64, rows and columns in patches
    geometry: ImageGeometry
    teacher_grid: TeacherGrid | None
    normalized_patches: Callable[[], Tensor]  # -> (P, 3 * p * p) float32

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_grid_hw)

    @cached_property
    def windows(self) -> Tensor:
        """The pixels of each image token, normalised with the model's mean and deviation: (Q, pool * pool * 3 * p * p)."""
        return self.normalized_patches().unflatten(0, (-1, self.geometry.pool_size**2)).flatten(1)

    @cached_property
    def cells(self) -> TeacherCells:
        """The teacher's patches inside the images, and the image tokens that each of them covers."""
        return TeacherCells.of(self.layout, self.image_grid_hw, self.geometry, self.teacher_grid)


class Supervision(ABC):
    """One loss at image tokens. It is built with those of ``CONTEXT`` that its constructor asks for.

    ``head`` is what it trains; the model owns it, under the supervision's name, and saves it in a file of its own.
    """

    term: ClassVar[str]
    """What the loss is called in logs and in ``output.terms``."""
    per: ClassVar[Count] = "images"
    """What its sum is averaged over: images or supervised tokens of the global batch."""
    taps: tuple[int, ...]
    """Hidden states of the decoder that it reads: 0 is the embeddings, L what is behind the final norm."""
    teacher_states: tuple[int, ...] = ()
    """Hidden states of the teacher that it reads, at most ``teacher_depth``; empty: it needs no teacher."""
    head: nn.Module

    @classmethod
    def check_arguments(cls, **arguments: Any) -> None:
        """Raise ConfigError for what can be known to be wrong before there is a model."""
        return

    @abstractmethod
    def positions(self, images: ImageBatch) -> Tensor:
        """Which hidden states are read: (M,) int64 into the flattened B * T tokens, or (M, k) for means over k tokens."""

    @abstractmethod
    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss, summed over the batch.

        It is called without images too, and must then return a 0 that all of ``head`` has a part in: under FSDP2 all processes
        do the same.

        Args:
            images: of the batch.
            hidden: (M, D) for each of ``taps``.
            teacher: (N, patches of the teacher, K) for each of ``teacher_states``.

        Returns:
            0-dim float32.
        """


SUPERVISIONS: Registry[Supervision] = Registry("supervision")
"""Losses at image tokens, for entries of ``supervision``."""


@SUPERVISIONS.register("patch_alignment")
class PatchAlignment(Supervision):
    """An aligner maps hidden states to one of the teacher's (EVE, arXiv 2406.11832, section 3.2).

    Args:
        aligner: ``{"name": ..., **arguments}`` of a registered aligner.
    """

    term = "alignment_loss"

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        teacher_width: int,
        teacher_depth: int,
        aligner: Mapping[str, Any] | None = None,
    ) -> None:
        self.aligner = dict(aligner or {"name": "layerwise"})
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "teacher_width": teacher_width}
        self.head = ALIGNERS.build(self.aligner, **sizes)
        self.taps, self.teacher_states = tuple(self.head.taps), (teacher_depth,)
        self.width = teacher_width

    @classmethod
    def check_arguments(cls, aligner: Mapping[str, Any] | None = None) -> None:
        """Is there such an aligner?"""
        if aligner is not None:
            ALIGNERS.check(aligner, ("hidden_size", "num_layers", "teacher_width"))

    def positions(self, images: ImageBatch) -> Tensor:
        """(M, k * k): the image tokens of each teacher patch."""
        return images.cells.positions

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """1 - cosine between the aligner's prediction and the teacher."""
        cells = images.cells
        predictions = self.head(list(hidden))  # (M, K)
        if predictions.shape != (shape := (len(cells.image_of_cell), self.width)):
            raise ConfigError(
                f"aligner {self.aligner['name']!r} returned the shape {tuple(predictions.shape)}, but the teacher's is {shape}"
            )
        targets = teacher[0].flatten(0, 1)[cells.teacher_index]  # (M, K)
        return patch_alignment_loss(predictions, targets, cells.image_of_cell, images.num_images)


@SUPERVISIONS.register("next_patch")
class NextPatch(Supervision):
    """A linear layer predicts the pixels of an image's next token, in row-major order (EVE, arXiv 2406.11832, table 4)."""

    term = "next_patch_loss"

    def __init__(self, hidden_size: int, num_layers: int, geometry: ImageGeometry) -> None:
        self.head = nn.Linear(hidden_size, geometry.pool_size**2 * geometry.patch_dim)
        self.taps = (num_layers,)

    def positions(self, images: ImageBatch) -> Tensor:
        """(Q,): all image tokens."""
        return images.layout.token_position

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean squared error against the normalised pixels of the next window."""
        return next_patch_loss(self.head(hidden[0]), images.windows, images.layout.image_of_token, images.num_images)


@SUPERVISIONS.register("distillation")
class Distillation(Supervision):
    """Each hidden state predicts the teacher's of the same number, up to ``teacher_layer`` (VoRA, arXiv 2503.20680)."""

    term = "distillation_loss"

    def __init__(self, hidden_size: int, num_layers: int, teacher_width: int, teacher_depth: int) -> None:
        if teacher_depth > num_layers:
            raise ConfigError(
                f"supervision 'distillation': the teacher's hidden state {teacher_depth} has no counterpart in a decoder of "
                f"{num_layers} layers; choose a smaller teacher_layer"
            )
        self.taps = self.teacher_states = tuple(range(teacher_depth + 1))
        self.head = LayerwiseHeads(hidden_size, teacher_width, len(self.taps))

    def positions(self, images: ImageBatch) -> Tensor:
        """(M, k * k): the image tokens of each teacher patch."""
        return images.cells.positions

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """1 - cosine, the mean over the hidden states."""
        cells = images.cells
        targets = [state.flatten(0, 1)[cells.teacher_index] for state in teacher]  # n times (M, K)
        return distillation_loss(self.head(hidden), targets, cells.image_of_cell, images.num_images)


# ---- entries of a config


def entries_of(config: EveConfig, with_teacher: bool) -> dict[str, dict[str, Any]]:
    """What a model is supervised with, by the names of the heads; the aligner is filled in where an entry names none.

    Without ``config.supervision`` a teacher means patch alignment.
    """
    entries = config.supervision
    if entries is None:
        entries = [{"name": "patch_alignment", "weight": config.alignment_weight}] if with_teacher else []
    found = {part_of(entry["name"]): dict(entry) for entry in entries}
    if "aligner" in found:
        found["aligner"]["aligner"] = dict(found["aligner"].get("aligner") or config.aligner or {"name": "layerwise"})
    return found


def without_weight(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry as the registry takes it."""
    return {key: value for key, value in entry.items() if key != "weight"}


def needs_teacher(name: str) -> bool:
    """Whether a supervision cannot be built without a teacher; one that is not known may need it."""
    return name not in SUPERVISIONS or SUPERVISIONS.asks_for(name, "teacher_width", "teacher_depth")


def check_entries(entries: Iterable[Mapping[str, Any]]) -> None:
    """Raise ConfigError for entries that are unknown, have unknown arguments or impossible weights, or come twice."""
    names = set()
    for entry in entries:
        SUPERVISIONS.check(without_weight(entry) if isinstance(entry, Mapping) else entry, CONTEXT)
        name, weight = entry["name"], entry.get("weight", 1.0)
        if name in names:
            raise ConfigError(f"{name!r} stands there twice")
        names.add(name)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError(f"the weight of {name!r} must be a number of at least 0, got {weight!r}")
        check = getattr(SUPERVISIONS[name], "check_arguments", None)
        if check is not None:
            check(**{key: value for key, value in entry.items() if key not in ("name", "weight")})


def build_supervision(entry: Mapping[str, Any], config: EveConfig, teacher: FrozenTeacher | None) -> Supervision:
    """Make the supervision of an entry.

    Raises:
        ConfigError: it is unknown, or needs a teacher that is not there.
    """
    text_config = config.text_config
    context = {
        "hidden_size": text_config.hidden_size,
        "num_layers": text_config.num_hidden_layers,
        "geometry": config.image_geometry,
        "teacher_width": None if teacher is None else teacher.width,
        "teacher_depth": None if teacher is None else teacher.depth,
    }
    SUPERVISIONS.check(without_weight(entry), CONTEXT)
    if teacher is None and needs_teacher(entry["name"]):
        raise ConfigError(f"supervision {entry['name']!r} needs a teacher: name one (model.teacher)")
    made = SUPERVISIONS.build(without_weight(entry), **context)
    for what, states, last in (
        ("decoder", made.taps, text_config.num_hidden_layers),
        ("teacher", made.teacher_states, context["teacher_depth"]),
    ):
        if wrong := [state for state in states if last is None or not 0 <= state <= last]:
            known = "is not among its arguments (teacher_depth)" if last is None else f"has 0 to {last}"
            raise ConfigError(f"supervision {entry['name']!r} reads hidden state {wrong[0]} of the {what}, which {known}")
    return made


# ---- one forward pass


class Supervisor:
    """Reads what supervisions need while the decoder runs, and computes their losses behind it.

    Args:
        supervisions: by the names of their heads.
        weights: of their losses.
        teacher: the frozen teacher, if there is one.
        images: of the batch.
        teacher_pixel_values: (N, 3, C, C) uint8, where a supervision looks at the teacher.

    Raises:
        LitEveError: a supervision looks at the teacher, and the batch has no pixels for it.
    """

    def __init__(
        self,
        supervisions: Mapping[str, Supervision],
        weights: Mapping[str, float],
        teacher: FrozenTeacher | None,
        images: ImageBatch,
        teacher_pixel_values: Tensor | None,
    ) -> None:
        self.supervisions, self.weights, self.images = supervisions, weights, images
        self.teacher, self.pixels = teacher, teacher_pixel_values
        if self.pixels is None and any(one.teacher_states for one in supervisions.values()):
            raise LitEveError("a teacher is attached, but the batch has no teacher_pixel_values")
        # Supervisions that read the same places share what is read there.
        self._positions = {part: one.positions(images) for part, one in supervisions.items()}
        self._states: dict[int, dict[int, Tensor]] = {}
        self._num_layers = 0

    def _read(self, tap: int, hidden: Tensor) -> dict[int, Tensor]:
        """Hidden state ``tap`` (B, T, D) at all places where it is needed, by the identity of these: (M, D) each."""
        states, flat = {}, hidden.flatten(0, 1)
        for part, one in self.supervisions.items():
            positions = self._positions[part]
            if tap in one.taps and id(positions) not in states:
                chosen = flat.index_select(0, positions.flatten()).unflatten(0, positions.shape)  # (M, D) or (M, k, D)
                states[id(positions)] = chosen.mean(1) if positions.ndim == 2 else chosen
        return states

    @contextmanager
    def watch(self, layers: Sequence[nn.Module], as_rows: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Read the inner hidden states of ``layers`` while they run; ``as_rows`` brings each into the shape (B, T, D)."""
        taps = sorted({tap for one in self.supervisions.values() for tap in one.taps})
        with hidden_state_taps(layers, taps, lambda tap, hidden: self._read(tap, as_rows(hidden))) as states:
            yield
        self._states, self._num_layers = states, len(layers)

    def terms(self, inputs_embeds: Tensor, hidden: Tensor) -> dict[str, Term]:
        """The losses, by their names.

        Args:
            inputs_embeds: (B, T, D) hidden state 0.
            hidden: (B, T, D) hidden state L, behind the final norm.
        """
        last = self._num_layers
        ends = {0: self._read(0, inputs_embeds), last: self._read(last, hidden)}
        states, teacher = self._states | ends, self._teacher_states()
        terms = {}
        for part, one in self.supervisions.items():
            features = [states[tap][id(self._positions[part])] for tap in one.taps]
            total = one.loss(self.images, features, [teacher[state] for state in one.teacher_states])
            if total.ndim:
                raise ConfigError(f"supervision {type(one).__name__} must return a sum (0-dim), not {tuple(total.shape)}")
            terms[one.term] = Term(total, one.per, self.weights[part])
        return terms

    def _teacher_states(self) -> dict[int, Tensor]:
        needed = {state for one in self.supervisions.values() for state in one.teacher_states}
        if not needed:
            return {}
        teacher = self.teacher
        if not self.images.num_images:
            nothing = self.pixels.new_zeros(0, teacher.grid.side**2, teacher.width, dtype=teacher.dtype)
            return dict.fromkeys(needed, nothing)
        pixels = normalize_pixels(self.pixels, teacher.grid.mean, teacher.std, teacher.dtype)
        if needed == {teacher.depth}:
            return {teacher.depth: teacher(pixels)}
        return dict(enumerate(teacher(pixels, every=True)))
