"""What an answer rests on, tried out: a patch is blanked or a head is silenced, and the answer is read again.

What was written stays (teacher forcing), so that one forward pass tells what each of its tokens still has. A fall is what the
intact model gives minus what is left: positive where the answer rests on what was taken away.

Notation: N images, H x W token grid of an image, Q image tokens, R rows of a forward pass, L layers, h heads, T tokens,
A answer tokens, p side of a patch, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from rich.progress import track
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.answers import WrittenAnswer
from lit_eve.interpretation.maps import on_grids
from lit_eve.interpretation.recording.intercept import AttentionCall, attention_modules, indices, intercept_attention
from lit_eve.interpretation.teacher_forcing import ForcedAnswer
from lit_eve.processing.images import normalize_pixels

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration


@dataclass(frozen=True)
class BlankedPatches:
    """What an answer loses with each patch of its images."""

    tokens: list[str]
    """The A answer tokens."""
    intact: Tensor
    """(A,) their log-probabilities, in nats."""
    blanked: list[Tensor]
    """For each of the N images (A, H, W): their log-probabilities where the patches of this image token are blank."""

    def drop(self, token: int | None = None, image: int = 0, *, probability: bool = False) -> Tensor:
        """(H, W): how much the log-probability of an answer token (its probability) falls; None: of the whole answer.

        Raises:
            LitEveError: there is no such token or image.
        """
        indices([image], len(self.blanked), "image")
        return _drop(self.intact, self.blanked[image], token, probability)

    @property
    def maps(self) -> list[Tensor]:
        """For each of the N images (A, H, W): the falls of the log-probability, laid out as those of `attend`."""
        return [self.intact[:, None, None] - blanked for blanked in self.blanked]


@dataclass(frozen=True)
class AblatedHeads:
    """What an answer loses with each attention head."""

    tokens: list[str]
    """The A answer tokens."""
    intact: Tensor
    """(A,) their log-probabilities, in nats."""
    ablated: Tensor
    """(A, L, h): their log-probabilities without the output of this head."""
    layers: list[int]
    """The L layers, from 0."""
    heads: list[int]
    """The h heads, from 0."""

    def drop(self, token: int | None = None, *, probability: bool = False) -> Tensor:
        """(L, h): how much the log-probability of an answer token (its probability) falls; None: of the whole answer.

        Raises:
            LitEveError: there is no such token.
        """
        return _drop(self.intact, self.ablated, token, probability)


@torch.no_grad()
def blank_patches(
    model: EveForConditionalGeneration,
    seen: WrittenAnswer,
    *,
    batch_size: int = 8,
    progress: str | None = "blanking patches",
    between: Callable[[], None] | None = None,
) -> BlankedPatches:
    """Give the patches of one image token after the other the mean colour, and read the answer again.

    The mean colour is what the model subtracts (``config.image_mean``), rounded to the levels of a pixel. Class tokens and
    neighbours that look at the patch change with it. Takes Q + 1 rows.

    Args:
        model: in eval mode; the one that gave the answer. Any decoder.
        seen: what `attend` returned, or another answer.
        batch_size: rows of a forward pass.
        progress: title of the progress bar; None: no bar.
        between: called after each forward pass: a server answers others meanwhile, or ends it by an exception.

    Raises:
        LitEveError: the model is in training mode.
    """
    forced = ForcedAnswer.of(model, seen)
    pixels, grid = seen.inputs["pixel_values"], seen.inputs["image_grid_hw"]
    windows = pixels.unflatten(0, (-1, model.geometry.pool_size**2))  # (Q, pool^2, 3 * p * p), one per image token
    blank = _blank_patch(model, pixels)  # (3 * p * p,)
    token = torch.arange(len(windows), device=pixels.device)
    scores = []
    for rows in _batches(len(windows), batch_size, progress):
        hit = rows.to(token.device)[:, None] == token  # (R, Q)
        changed = torch.where(hit[..., None, None], blank, windows)  # (R, Q, pool^2, 3 * p * p)
        output = model(
            input_ids=forced.input_ids.expand(len(rows), -1),
            pixel_values=changed.flatten(0, 2),
            image_grid_hw=grid.repeat(len(rows), 1),
            use_cache=False,
            logits_to_keep=forced.positions,
        )
        scores.append(forced.log_probabilities(output.logits))  # (R, A)
        if between is not None:
            between()
    intact, blanked = torch.cat(scores).T.split([1, len(windows)], 1)  # (A, 1), (A, Q)
    return BlankedPatches(seen.tokens, intact[:, 0], on_grids(blanked, model.geometry.token_grid_of(grid), axis=1))


@torch.no_grad()
def ablate_heads(
    model: EveForConditionalGeneration,
    seen: WrittenAnswer,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
    progress: str | None = "ablating heads",
) -> AblatedHeads:
    """Zero the output of one attention head after the other, at all positions, and read the answer again.

    Takes L * h + 1 rows.

    Args:
        model: in eval mode; the one that gave the answer.
        seen: what `attend` returned, or another answer.
        layers, heads: negative ones from the end; None: all.
        batch_size: rows of a forward pass.
        progress: title of the progress bar; None: no bar.

    Raises:
        LitEveError: there is no such layer or head, the model's attention cannot be intercepted, or it is in training mode.
    """
    forced = ForcedAnswer.of(model, seen)
    modules = attention_modules(model)
    layers = indices(layers, len(modules), "layer")
    heads = indices(heads, modules[0].config.num_attention_heads, "head")
    pairs = torch.cartesian_prod(torch.tensor(layers), torch.tensor(heads))  # (L * h, 2)
    embeds = model.embed_inputs(forced.input_ids, seen.inputs["pixel_values"], seen.inputs["image_grid_hw"])  # (1, T, D)
    numbers = model.number_images(forced.input_ids, seen.inputs["image_grid_hw"])  # (1, T)
    positions = model.position_tokens(forced.input_ids, seen.inputs["image_grid_hw"])  # (1, T, 4), or None
    scores = []
    for rows in _batches(len(pairs), batch_size, progress):
        silent = torch.where(rows[:, None] < 0, -1, pairs[rows]).to(embeds.device)  # (R, 2): layer and head; -1: none
        called: set[int] = set()
        inputs = {"inputs_embeds": embeds.expand(len(rows), -1, -1), "image_numbers": numbers.expand(len(rows), -1)}
        if positions is not None:
            inputs["token_positions"] = positions.expand(len(rows), -1, -1)
        with intercept_attention(model, partial(_silence, silent, called), layers):
            output = model(**inputs, use_cache=False, logits_to_keep=forced.positions)
        if called != set(layers):
            raise LitEveError(
                "the attention of some layers was not seen, so that no head is ablated (compiled ones are not seen)"
            )
        scores.append(forced.log_probabilities(output.logits))  # (R, A)
    intact, ablated = torch.cat(scores).T.split([1, len(pairs)], 1)  # (A, 1), (A, L * h)
    return AblatedHeads(seen.tokens, intact[:, 0], ablated.unflatten(1, (len(layers), len(heads))), layers, heads)


def _blank_patch(model: EveForConditionalGeneration, pixels: Tensor) -> Tensor:
    """(3 * p * p,) a patch of the mean colour, as the pixels are: uint8, or float and normalised.

    Never zeros, which no picture has: behind eve_v1's LayerNorm they are far from the colours next to them.
    """
    config = model.config
    colour = (255 * torch.tensor(config.image_mean, device=pixels.device)).round().to(torch.uint8)[None, :, None]  # (1, 3, 1)
    if pixels.is_floating_point():
        colour = normalize_pixels(colour, config.image_mean, config.image_std, pixels.dtype)
    return colour.expand(1, 3, model.geometry.patch_size**2).flatten()


def _silence(silent: Tensor, called: set[int], call: AttentionCall) -> tuple[Tensor, Tensor | None]:
    """The kernel's output, with one head of each row zero where this is its layer.

    Args:
        silent: (R, 2), layer and head of each row.
        called: the layer is added to it.
    """
    output, weights = call.run()  # (R, T, h, d)
    called.add(call.layer)
    head = torch.arange(output.shape[2], device=output.device)
    hit = (silent[:, :1] == call.layer) & (silent[:, 1:] == head)  # (R, h)
    return output.masked_fill(hit[:, None, :, None], 0), weights


def _batches(count: int, batch_size: int, progress: str | None) -> Iterator[Tensor]:
    """Rows -1 (nothing is changed), 0, ... count - 1, at most ``batch_size`` at a time, under a progress bar.

    Raises:
        LitEveError: no positive batch size.
    """
    if batch_size < 1:
        raise LitEveError(f"batch_size must be at least 1, got {batch_size}")
    yield from track(torch.arange(-1, count).split(batch_size), progress or "", disable=progress is None, transient=True)


def _drop(intact: Tensor, changed: Tensor, token: int | None, probability: bool) -> Tensor:
    """What (A,) is above (A, ...), for one answer token or the sum of all: (...)."""
    if token is None:
        before, after = intact.sum(0), changed.sum(0)
    else:
        indices([token], len(intact), "answer token")
        before, after = intact[token], changed[token]
    return before.exp() - after.exp() if probability else before - after
