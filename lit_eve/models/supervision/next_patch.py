"""Next patch prediction. Notation: Q image tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lit_eve.losses import next_patch_loss
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch, Supervision
from lit_eve.processing.geometries import ImageGeometry


@SUPERVISIONS.register("next_patch")
class NextPatch(Supervision):
    """A linear layer predicts the pixels of an image's next token, in row-major order (EVE, arXiv 2406.11832, table 4)."""

    def __init__(self, hidden_size: int, num_layers: int, geometry: ImageGeometry) -> None:
        self.head = nn.Linear(hidden_size, geometry.window_dim)
        self.taps = (num_layers,)

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean squared error against the normalised pixels of the next window."""
        return next_patch_loss(self.head(hidden[0]), images.windows, images.layout.image_of_token, images.num_images)
