"""Whether maps that claim to explain an answer agree with what the answer was shown to rest on.

Notation: N images, H x W token grid of an image, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.causal import BlankedPatches

WHOLE = "(whole answer)"


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps; equal values share the mean of their ranks.

    Args:
        first: (..., H, W), an attention map or many of them, (L, h, H, W) for example.
        second: (H, W), or as many as ``first``.

    Returns:
        (...) float64 in -1..1; NaN where all values of a map are equal (they have no order) or one is NaN.

    Raises:
        LitEveError: the maps have different sizes.
    """
    if first.shape[-2:] != second.shape[-2:]:
        raise LitEveError(f"maps of {_size(first)} and {_size(second)} tokens cannot be compared")
    return _spearman(first.flatten(-2), second.flatten(-2))


@dataclass(frozen=True)
class Agreement:
    """A table: one row per answer token and, where there are several, one for the whole answer."""

    tokens: list[str]
    probability: Tensor
    """(rows,) of the token."""
    largest_drop: Tensor
    """(rows,): what its log-probability loses with the one patch that it loses most with."""
    correlations: dict[str, Tensor]
    """For each kind of map (rows,): its rank correlation with the falls of the log-probability."""
    hits: dict[str, Tensor]
    """For each kind of map (rows,) bool: its largest value is at the patch with the largest fall."""

    def __str__(self) -> str:
        table = [["token", "p", "largest fall", *self.correlations]]
        for row, token in enumerate(self.tokens):
            line = [token, f"{self.probability[row].item():.2f}", f"{self.largest_drop[row].item():.2f}"]
            for name, values in self.correlations.items():
                value, star = values[row].item(), " *" if self.hits[name][row] else "  "
                line.append(("-" if value != value else f"{value:.2f}") + star)
            table.append(line)
        first = max(len(line[0]) for line in table)
        widths = [max(len(line[column]) for line in table) for column in range(1, len(table[0]))]
        lines = [
            "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], widths, strict=True))])
            for line in table
        ]
        return "\n".join([*lines, "* the largest value is at the patch with the largest fall"])


def compare_maps(blanked: BlankedPatches, maps: Mapping[str, Sequence[Tensor]]) -> Agreement:
    """Set kinds of maps beside what happened when patches were blanked; ``print`` shows the table.

    Ranks are taken over the patches of all images together. Where the largest fall is near zero, there is nothing to agree
    with; where one patch has nearly all of the fall, the order of the others is noise and the star tells more.

    Args:
        blanked: of the answer that the maps are of.
        maps: by name, for each of the N images (A, H, W), as `attend`, `rollout` and `gradient_rollout` return them. Of the
            whole answer, their mean over the tokens.

    Raises:
        LitEveError: maps of another shape.
    """
    for name, kind in maps.items():
        shapes, expected = ([tuple(one.shape) for one in some] for some in (kind, blanked.blanked))
        if shapes != expected:
            raise LitEveError(f"the maps {name!r} have the shapes {shapes}, but those of blanked patches {expected}")
    several = len(blanked.tokens) > 1
    with_sum = lambda rows: torch.cat([rows, rows.sum(0, keepdim=True)]) if several else rows  # noqa: E731
    falls = with_sum(_flat(blanked.maps))  # (rows, Q)
    values = {name: with_sum(_flat(kind)) for name, kind in maps.items()}
    return Agreement(
        tokens=[token.strip() for token in blanked.tokens] + [WHOLE] * several,
        probability=with_sum(blanked.intact).exp(),
        largest_drop=falls.amax(1),
        correlations={name: _spearman(rows, falls) for name, rows in values.items()},
        hits={name: rows.argmax(1) == falls.argmax(1) for name, rows in values.items()},
    )


def _spearman(first: Tensor, second: Tensor) -> Tensor:
    """(..., n) and (..., n) -> (...)."""
    first, second = _centred_ranks(first), _centred_ranks(second)
    return (first * second).sum(-1) / (first.square().sum(-1) * second.square().sum(-1)).sqrt()


def _centred_ranks(values: Tensor) -> Tensor:
    """(..., n) -> ranks minus their mean, float64."""
    values = values.detach().double().contiguous()
    ordered = values.sort(-1).values
    # Half of what is smaller or equal and of what is smaller: the mean rank of equal values.
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    ranks = (below + upto).double() / 2
    return (ranks - ranks.mean(-1, keepdim=True)).masked_fill(values.isnan().any(-1, keepdim=True), torch.nan)


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """N maps (A, H, W) -> (A, Q)."""
    return torch.cat([one.flatten(1) for one in maps], 1)


def _size(maps: Tensor) -> str:
    return " x ".join(map(str, maps.shape[-2:]))
