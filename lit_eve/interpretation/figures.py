"""Figures of what was found, to be shown in a notebook or saved: matplotlib's ``Figure``, without pyplot's global state.

Notation: H x W token grid of an image, A answer tokens, L layers, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.causal import AblatedHeads
from lit_eve.plotting import drawing
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAIN, _BOTH_WAYS = "Reds", "RdBu_r"


def maps_figure(image: ImageSource, maps: Mapping[str, Tensor], tokens: Sequence[str]) -> Figure:
    """Maps of several kinds over one image: a row per answer token, a column per kind, which share a scale of colours.

    Args:
        image: what the model saw.
        maps: by title, (A, H, W) of this image each: ``{"attention": seen.maps[0], "rollout": rollout(model, seen)[0]}``. A
            kind with negative numbers gets colours of two signs, white at 0.
        tokens: A names.

    Raises:
        LitEveError: there is no map, or not one per token.
    """
    for title, kind in maps.items():
        if kind.ndim != 3 or len(kind) != len(tokens):
            raise LitEveError(f"the maps {title!r} have the shape {tuple(kind.shape)}, but there are {len(tokens)} tokens")
    if not maps or not tokens:
        raise LitEveError("there is no map to draw")
    picture = load_image(image)
    width, height = picture.size
    cell = max(1.0, 2.2 * min(1.0, width / height)), max(0.4, 2.2 * min(1.0, height / width))  # inches
    size = (len(maps) + 1) * (cell[0] + 0.1) + 1.0, len(tokens) * (cell[1] + 0.1) + 0.8
    heights = [*[cell[1]] * len(tokens), 0.08]  # below them the scales
    with drawing(len(heights), len(maps) + 1, size, height_ratios=heights) as (figure, axes):
        for ax in axes[:-1].flat:
            ax.set(xticks=[], yticks=[])
        for ax, token in zip(axes[:-1, 0], tokens, strict=True):
            ax.imshow(picture)
            ax.set_ylabel(token.strip(), rotation="horizontal", ha="right", va="center")
        axes[0, 0].set_title("image")
        axes[-1, 0].axis("off")
        for column, (title, kind) in zip(axes[:, 1:].T, maps.items(), strict=True):
            values = kind.detach().float().cpu()
            limit = values.abs().max().item() or 1.0
            signed = bool((values < 0).any())
            scale = {"cmap": _BOTH_WAYS if signed else _GAIN, "vmin": -limit if signed else 0.0, "vmax": limit}
            for ax, heat in zip(column, values, strict=False):
                ax.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255)
                drawn = ax.imshow(heat.numpy(), extent=(-0.5, width - 0.5, height - 0.5, -0.5), alpha=0.7, **scale)
            column[0].set_title(title)
            figure.colorbar(drawn, cax=column[-1], orientation="horizontal").ax.locator_params(nbins=2)
    return figure


def heads_figure(ablated: AblatedHeads, token: int | None = None, *, probability: bool = False) -> Figure:
    """What an answer token loses (None: the whole answer) with each head: a row per layer, the first at the bottom.

    Raises:
        LitEveError: there is no such token.
    """
    values = ablated.drop(token, probability=probability).float().cpu()  # (L, h)
    limit = values.abs().max().item() or 1.0
    layers, heads = values.shape
    with drawing(1, 1, (min(0.35 * heads, 9) + 1.8, min(0.35 * layers, 9) + 1.0)) as (figure, axes):
        ax = axes[0, 0]
        ax.grid(False)
        drawn = ax.imshow(values.numpy(), origin="lower", aspect="auto", cmap=_BOTH_WAYS, vmin=-limit, vmax=limit)
        ax.set_xticks(range(heads), ablated.heads)
        ax.set_yticks(range(layers), ablated.layers)
        ax.set(xlabel="head", ylabel="layer")
        of = "the whole answer" if token is None else repr(ablated.tokens[token].strip())
        ax.set_title(f"what {of} loses without each head")
        figure.colorbar(drawn, ax=ax, label="probability" if probability else "log-probability (nats)")
    return figure
