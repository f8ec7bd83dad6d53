"""What AttentionRecorder shows is what the composition says: rows that sum to 1, over exactly the tokens that may be seen.

Notation: T tokens of a row, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_eve.interpretation.recording import AttentionRecorder
from lit_eve.models import EveForConditionalGeneration, ImageAttention, Tokens
from lit_eve.models.decoders import blocks_of
from lit_eve.planning.flops import window_of
from lit_eve.testing.samples import Sample, image_of_token, make_samples, packed, without_labels

_SUM = 1e-5


def visible(kind: ImageAttention, image: Tensor, window: int | None = None) -> Tensor:
    """(T, T) bool: what the tokens of one sample see, by definition.

    Args:
        kind: of image attention.
        image: (T,) the number of each token's image, -1 at words.
        window: of the decoder's layer: how many tokens of those not behind it a token sees, itself with them.
    """
    place = torch.arange(len(image))
    query, key = Tokens(image[:, None], place[:, None]), Tokens(image[None], place[None])
    distance = query.place - key.place
    may = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    may = may | ((query.image == key.image) & (query.image >= 0))
    return may & (kind.sees(query, key) | (distance == 0))


@torch.no_grad()
def check_recorded(model: EveForConditionalGeneration) -> None:
    """The attention of a packed row.

    Raises:
        LitEveError: the attention of this family of decoders cannot be recorded.
    """
    samples = make_samples(model)
    with AttentionRecorder(model, rows=None) as recorder:
        model(**without_labels(packed([samples])))
    for layer, block in enumerate(blocks_of(model.get_decoder())):
        compare_recorded(model, samples, recorder.calls(layer)[0][0], layer, window_of(block, model.config.text_config))


def compare_recorded(
    model: EveForConditionalGeneration, samples: Sequence[Sample], weights: Tensor, layer: int, window: int | None
) -> None:
    """Probabilities (h, T, T) of a row of samples, and what these may see."""
    name = model.config.image_attention["name"]
    images = [image_of_token(model, sample) for sample in samples]
    may = torch.block_diag(*(visible(model.image_attention, image, window) for image in images))  # (T, T)
    off = float((weights.sum(-1) - 1).abs().max())
    assert off <= _SUM, f"attention of layer {layer}: the probabilities of a token sum to 1 but for {off:.2g}"
    for seen, words in ((weights > 0) & ~may.bool(), "sees"), ((weights == 0) & may.bool(), "does not see"):
        if seen.any():
            head, query, key = seen.nonzero()[0].tolist()
            raise AssertionError(
                f"attention of layer {layer}, head {head}: token {query} of a packed row {words} token {key}, against the "
                f"image attention {name!r}"
            )
