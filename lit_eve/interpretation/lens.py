"""Logit lens: which word the head would read at an image token, layer by layer (nostalgebraist 2020, "interpreting GPT: the
logit lens").

Notation: N images, H x W token grid of an image, Q image tokens, S hidden states, k words, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_eve.errors import LitEveError
from lit_eve.interpretation.answers import question_inputs
from lit_eve.interpretation.maps import on_grids
from lit_eve.interpretation.overlay import picture_below
from lit_eve.interpretation.recording import ActivationRecorder
from lit_eve.interpretation.recording.intercept import in_this_thread, indices
from lit_eve.interpretation.samples import check_eval, check_images
from lit_eve.models.decoders import FamilyHead, blocks_of
from lit_eve.models.splice import ImageLayout
from lit_eve.plotting import INK, SOFT, drawing
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class LogitLens:
    """The most probable words at each image token."""

    states: list[int]
    """The S hidden states: 0 the embeddings, i what block i - 1 returns, up to the number of blocks."""
    token_ids: list[Tensor]
    """For each of the N images (S, H, W, k) int64, the most probable first."""
    probabilities: list[Tensor]
    """For each of the N images (S, H, W, k) float32."""
    words: list[np.ndarray]
    """For each of the N images (S, H, W, k) str."""


@torch.no_grad()
def logit_lens(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    images: Sequence[ImageSource],
    *,
    states: Sequence[int] | None = None,
    top: int = 5,
) -> LogitLens:
    """Send hidden states at image tokens through the decoder's final norm and head, as the last one goes.

    There is no question: what comes behind an image changes nothing in a causal decoder.

    Args:
        images: one after another; each knows those before it.
        states: hidden states, 0 the embeddings, negative ones from the end; None: all.
        top: how many words.

    Raises:
        LitEveError: there is no image or no such hidden state, the geometry does not show a photo whole, the model is in
            training mode, or the decoder does more behind its blocks than its modules.
    """
    check_images("logit_lens", images)
    check_eval(model)
    vocabulary = model.config.text_config.vocab_size
    if not 1 <= top <= vocabulary:
        raise LitEveError(f"logit_lens: top is 1 to {vocabulary}, the words of the vocabulary, not {top}")
    inputs = question_inputs(model, processor, images, "")
    grid = inputs["image_grid_hw"]
    layout = ImageLayout.of(inputs["input_ids"], grid, len(inputs["pixel_values"]), model.geometry, model.config.image_token_id)
    decoder = model.get_decoder()
    count = len(blocks_of(decoder))
    chosen = indices(states, count + 1, "hidden state")
    rows = layout.token_position.tolist()  # of the one row that there is
    with (
        ActivationRecorder(model, ["input"], [0], rows) as first,
        ActivationRecorder(model, ["hidden"], sorted({count - 1, *(state - 1 for state in chosen if state)}), rows) as blocks,
        _BehindTheBlocks(decoder) as ending,
    ):
        model(**inputs, use_cache=False, logits_to_keep=1)
    hidden = lambda state: blocks.calls("hidden", state - 1)[0] if state else first.calls("input", 0)[0]  # noqa: E731
    ending.check(hidden(count), rows)
    head = FamilyHead(model.language_model, decoder)
    best = [head(ending(hidden(state))[0]).float().softmax(-1).topk(top) for state in chosen]  # (Q, k) each
    sizes = model.geometry.token_grid_of(grid)
    token_ids, probabilities = (  # (S, H, W, k) per image
        on_grids(torch.stack(parts).cpu(), sizes, axis=1)
        for parts in ([one.indices for one in best], [one.values for one in best])
    )
    return LogitLens(
        states=chosen,
        token_ids=token_ids,
        probabilities=probabilities,
        words=[_decode(ids, processor) for ids in token_ids],
    )


class _BehindTheBlocks:
    """Context manager that learns, while a decoder runs, through which of its modules the last block's output goes.

    Called afterwards, it sends (..., D) that way: through the final norm, and whatever else a family has there.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = decoder
        self._path: list[nn.Module] = []

    def __enter__(self) -> _BehindTheBlocks:
        blocks = blocks_of(self._decoder)
        note = in_this_thread(lambda module, _inputs, _output: self._path.append(module))
        begin, end = in_this_thread(lambda *_: self._path.clear()), in_this_thread(self._end)
        self._handles = [child.register_forward_hook(note) for child in self._decoder.children() if child is not blocks]
        self._handles += [blocks[-1].register_forward_hook(begin), self._decoder.register_forward_hook(end)]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _end(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._last = output.last_hidden_state

    def __call__(self, hidden: Tensor) -> Tensor:
        for module in self._path:
            hidden = module(hidden)
        return hidden

    def check(self, hidden: Tensor, rows: Sequence[int]) -> None:
        """Raise LitEveError unless the last block's output at these rows becomes what the decoder returned."""
        found, expected = self(hidden), self._last[:, rows]
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
            raise LitEveError(
                f"{type(self._decoder).__name__} does more behind its blocks than its modules do: there is no logit lens of it"
            )


def _decode(token_ids: Tensor, processor: EveProcessor) -> np.ndarray:
    unique, place = token_ids.unique(return_inverse=True)
    return np.array([processor.tokenizer.decode([id]) for id in unique.tolist()])[place.numpy()]


def lens_figure(
    images: Sequence[ImageSource], lens: LogitLens, image: int = 0, *, columns: int = 4, cell: float = 0.6
) -> Figure:
    """The image with the most probable word at each image token, a panel per hidden state; faint words are improbable ones.

    Args:
        images: what the model saw.
        lens: of :func:`logit_lens`.
        image: which of the images.
        columns: panels in a row.
        cell: side of an image token in inches.

    Raises:
        LitEveError: there is no such image.
    """
    picture, image = picture_below(images, image, {"the lens": lens.words})
    words, probabilities = lens.words[image][..., 0], lens.probabilities[image][..., 0].tolist()
    _, height, width = words.shape
    columns = min(columns, len(lens.states))
    rows = -(-len(lens.states) // columns)
    with drawing(rows, columns, (columns * max(width * cell, 1), rows * (height * cell + 0.3))) as (drawn, axes):
        for axis in axes.flat:
            axis.axis("off")
        for axis, state, shown, certain in zip(axes.flat, lens.states, words, probabilities, strict=False):
            axis.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.35)
            axis.set_title(f"block {state - 1}" if state else "embeddings", color=SOFT, loc="center")
            for row, column in np.ndindex(height, width):
                lines = wrap(shown[row, column], 9) or [repr(shown[row, column])[1:-1]]  # blanks, named
                size = min(8, 72 * cell / (0.65 * max(1, *map(len, lines))))  # points, so that the word fits
                alpha = 0.35 + 0.65 * certain[row][column]
                place = {"ha": "center", "va": "center", "parse_math": False}
                axis.text(column, row, "\n".join(lines), color=INK, alpha=alpha, fontsize=size, **place)
    return drawn
