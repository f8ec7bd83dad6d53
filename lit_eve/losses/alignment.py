"""Patch alignment: the decoder's hidden states at image positions must predict a frozen teacher's patch features.

Source: arXiv 2406.11832, section 3.2 (patch aligning layer); upstream EVEv1/eve/model/multimodal_encoder/vision_tokenizer.py,
class VisionCompressor. Notation: M teacher cells (patches of the teacher inside the images), D decoder width, K teacher
width, L decoder layers, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lit_eve.errors import ConfigError, check_sizes
from lit_eve.losses.terms import sum_of_image_means
from lit_eve.registry import Registry

ALIGNERS: Registry[nn.Module] = Registry("aligner")
"""Modules that map tapped hidden states to the teacher's features.

A variant has ``taps`` (the hidden states that it reads, last first; 0 = the embeddings, L = after the final norm) and
``forward(features: list of (M, D), one per tap) -> (M, K)``. It is built with the context ``hidden_size``, ``num_layers``
and ``teacher_width``.
"""


@ALIGNERS.register("layerwise")
class LayerwiseAligner(nn.Module):
    """Cross attention over layers: the last tap asks, the earlier taps answer (EVE v1).

    Args:
        hidden_size: D of the decoder.
        num_layers: L of the decoder.
        teacher_width: K.
        layer_interval: distance between taps: L, L - interval, ... down to 0 where it is met.
        num_heads: heads of the cross attention. Its scale is K ** -0.5, the full width, as upstream.
    """

    def __init__(
        self, hidden_size: int, num_layers: int, teacher_width: int, layer_interval: int = 4, num_heads: int = 8
    ) -> None:
        super().__init__()
        check_sizes("aligner", layer_interval=layer_interval, num_heads=num_heads)
        self.taps: tuple[int, ...] = tuple(range(num_layers, -1, -layer_interval))
        if len(self.taps) < 2:
            raise ConfigError(
                f"aligner: layer_interval {layer_interval} leaves a single tap in a decoder of {num_layers} layers; "
                "the last tap needs at least one earlier tap to attend to"
            )
        if teacher_width % num_heads:
            raise ConfigError(f"aligner: num_heads {num_heads} does not divide the teacher's width {teacher_width}")
        self.num_heads = num_heads
        self.scale = teacher_width**-0.5
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in self.taps)
        self.projections = nn.ModuleList(nn.Linear(hidden_size, teacher_width, bias=False) for _ in self.taps)
        self.input_layer = nn.Linear(hidden_size, teacher_width)
        self.output_layer = nn.Linear(teacher_width, teacher_width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict the teacher: (M, D) per tap, in the order of ``taps`` -> (M, K)."""
        projected = torch.stack(
            [projection(norm(tap)) for projection, norm, tap in zip(self.projections, self.norms, features, strict=True)],
            dim=1,
        )  # (M, taps, K)
        heads = rearrange(projected, "m t (h k) -> m h t k", h=self.num_heads)
        query, keys = heads[:, :, :1], heads[:, :, 1:]  # (M, h, 1, k), (M, h, taps - 1, k)
        weights = (query * self.scale * keys).sum(-1).softmax(dim=-1)  # (M, h, taps - 1)
        attended = (weights.unsqueeze(-1) * keys).sum(-2)  # (M, h, k)
        return self.input_layer(features[0]) + self.output_layer(rearrange(attended, "m h k -> m (h k)"))


def patch_alignment_loss(predictions: Tensor, targets: Tensor, image_of_cell: Tensor, num_images: int) -> Tensor:
    """1 - cosine, averaged over the cells of each image and summed over the images, in float32.

    Args:
        predictions: (M, K).
        targets: (M, K).
        image_of_cell: (M,) int64, the image that a cell belongs to.
        num_images: N images of this batch.

    Returns:
        0-dim float32 tensor; divide it by the number of images of the whole (global) batch.
    """
    distance = 1 - F.cosine_similarity(predictions.float(), targets.float(), dim=-1)  # (M,)
    return sum_of_image_means(distance, image_of_cell, num_images)
