"""What a supervision is: a loss at image tokens beside the next-token loss, with a head of its own, in training alone.

Notation: B rows, T tokens per row, D decoder width, L decoder layers, N images, P patches, p side of a patch, Q image tokens,
M places whose hidden states are read, C teacher image size, K teacher width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_eve.errors import LitEveError
from lit_eve.losses.terms import Count, sum_of_image_means
from lit_eve.models.splice import ImageLayout, TeacherCells, enumerate_segments
from lit_eve.models.supervision.draws import draw
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.processing.teacher_grid import TeacherGrid
from lit_eve.registry import Registry

CONTEXT = ("hidden_size", "num_layers", "geometry", "teacher", "teacher_width", "teacher_depth")
"""Arguments of supervisions that come from the model."""


@dataclass(frozen=True)
class ImageBatch:
    """The images of a batch, for supervisions; what is derived is computed once, on first use."""

    layout: ImageLayout
    image_grid_hw: Tensor  # (N, 2) int64, rows and columns in patches
    geometry: ImageGeometry
    teacher_grid: TeacherGrid | None
    normalized_patches: Callable[[], Tensor]  # -> (P, 3 * p * p) float32
    seeds: Tensor | None = None  # (N,) int64
    teacher_pixels: Tensor | None = None  # (N, 3, C, C) uint8
    _made: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_grid_hw)

    @cached_property
    def windows(self) -> Tensor:
        """The pixels of each image token, normalised with the model's mean and deviation: (Q, pool * pool * 3 * p * p)."""
        return self.normalized_patches().unflatten(0, (-1, self.geometry.pool_size**2)).flatten(1)

    @cached_property
    def tokens_of_image(self) -> Tensor:
        """(N,) int64, how many tokens each image has, without class and split tokens."""
        return self.geometry.token_grid_of(self.image_grid_hw).prod(-1)

    @cached_property
    def offset_of_token(self) -> Tensor:
        """(Q,) int64, the place of each image token in its image, row by row."""
        return enumerate_segments(self.tokens_of_image, len(self.layout.token_position))[1]

    @cached_property
    def random_of_images(self) -> Tensor:
        """(N,) float32 in [0, 1), a random number for each image: the same whenever this image is read in this epoch, and in
        every validation. So a run that is resumed, or shared out to other processes, draws the same.

        Raises:
            LitEveError: the batch has no ``image_seeds``.
        """
        return draw(self._seeds)

    @cached_property
    def random_of_tokens(self) -> Tensor:
        """(Q,) float32 in [0, 1), the same for each image token."""
        return draw(self._seeds[self.layout.image_of_token], self.offset_of_token)

    def sum_of_means(self, values: Tensor) -> Tensor:
        """The mean of (Q,) values over the tokens of each image, summed over the images: 0-dim float32."""
        return sum_of_image_means(values, self.layout.image_of_token, self.num_images)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, computed at the first call with this key: for what a supervision needs in several methods."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def _seeds(self) -> Tensor:
        if self.seeds is None or len(self.seeds) != self.num_images:
            found = "none" if self.seeds is None else len(self.seeds)
            raise LitEveError(f"a supervision draws random numbers for {self.num_images} images, but image_seeds has {found}")
        return self.seeds

    @cached_property
    def cells(self) -> TeacherCells:
        """The teacher's patches inside the images, and the image tokens that each of them covers."""
        return TeacherCells.of(self.layout, self.image_grid_hw, self.geometry, self.teacher_grid)


class Supervision(ABC):
    """One loss at image tokens. It is built with those of ``CONTEXT`` that its constructor asks for.

    ``head`` is what it trains; the model owns it, under the supervision's name, and saves it in a file of its own.
    """

    term: str
    """What the loss is called in logs and in ``output.terms``; without one, the name in ``supervision`` and ``_loss``."""
    per: ClassVar[Count] = "images"
    """What its sum is averaged over: images or supervised tokens of the global batch."""
    taps: tuple[int, ...]
    """Hidden states of the decoder that it reads: 0 is the embeddings, L what is behind the final norm."""
    teacher_states: tuple[int, ...] = ()
    """Hidden states of the teacher that it reads, at most ``teacher_depth``; empty: it needs no teacher."""
    reads_teacher_pixels: ClassVar[bool] = False
    """Whether it looks at ``images.teacher_pixels`` itself."""
    head: nn.Module

    @classmethod
    def check_arguments(cls, **arguments: Any) -> None:
        """Raise ConfigError for what can be known to be wrong before there is a model."""
        return

    def change_tokens(self, images: ImageBatch, tokens: Tensor) -> Tensor:
        """The image tokens that the decoder reads in training and validation, never where the model answers: (Q, D) -> (Q, D).

        Class and split tokens are not among them. By default they stay as they are. Several supervisions change them one after
        the other.
        """
        return tokens

    def positions(self, images: ImageBatch) -> Tensor:
        """Which hidden states are read: (M,) int64 into the flattened B * T tokens, or (M, k) for means over k tokens.

        By default those of all image tokens, without class and split tokens: M = Q.
        """
        return images.layout.token_position

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
