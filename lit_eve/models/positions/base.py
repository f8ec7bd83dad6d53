"""Where tokens stand: kinds of positions by name, and the rule by which tokens are placed.

``sequential`` counts tokens, as the language model does by itself. All other kinds give each token three numbers (t, h, w). A
sample is walked through from its beginning: a word takes one step, an image as many as its kind says. A class token is a word
in front of its image; a split token is one more column of its row. A word, an image of 2 x 3 tokens and a word, with ``thw``
(an image takes as many steps as its longest side) and ``neo`` (one step)::

                 word   image                                                word
    thw          0 0 0  1 1 1  1 1 2  1 1 3  1 2 1  1 2 2  1 2 3             4 4 4
    neo          0 0 0  1 0 0  1 0 1  1 0 2  1 1 0  1 1 1  1 1 2             2 0 0

Everything is index arithmetic on the device: no loop, and nothing waits.

Notation: B rows, T tokens per row, K tokens with those in the KV cache, N images, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_eve.errors import LitEveError
from lit_eve.models.splice import starts_of_samples
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.registry import Registry

Steps = Callable[[Tensor, Tensor], Tensor]


class Positions:
    """A kind of positions; registered in :data:`POSITIONS`. The arguments of its constructor are keys of the YAML.

    A subclass defines :meth:`steps` and :meth:`stand`, which consist of elementwise operations.
    """

    is_sequential: ClassVar[bool] = False
    """Whether tokens are counted, as the language model does by itself."""

    adds_weights: ClassVar[bool] = False
    """Whether the decoder gets weights that the language model does not have."""

    def extend(self, language_model: PreTrainedModel) -> None:
        """Change a language model in place so that it takes what :meth:`arguments` gives.

        Called once, before any weight is loaded, often on the meta device.

        Raises:
            ConfigError: this cannot be right for the language model.
        """

    def weights(self, language_model: PreTrainedModel) -> set[str]:
        """The names of all new weights in the extended language model."""
        return set()

    def begins(self, language_model: PreTrainedModel, name: str, weight: Tensor) -> Iterable[tuple[str, Tensor]]:
        """New weights that begin as something of a weight of the language model: their names, and full tensors.

        Args:
            language_model: extended.
            name: in the extended language model.
            weight: full, as stored; on the meta device where shapes alone are asked for.
        """
        return ()

    def drawn(self, language_model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
        """All other new weights, on the CPU."""
        return ()

    def check_attention(self, implementation: str | None) -> None:
        """Raise LitEveError if an attention implementation of transformers cannot compute with these positions."""

    def score_width(self, width: int) -> int:
        """How many channels queries and keys have in heads of this width."""
        return width

    def steps(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How many steps an image takes.

        Args:
            rows, columns: int64 of any shape, those of its tokens; split tokens are one more column.
        """
        raise NotImplementedError

    def stand(self, start: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where a token stands: (t, h, w).

        Args:
            start: int64 of any shape, the step at which the token or its image begins.
            row, column: of the token in its image; 0 for words.
        """
        raise NotImplementedError

    def arguments(self, decoder: PreTrainedModel, like: Tensor, positions: Tensor) -> dict[str, Any]:
        """Keyword arguments for the decoder, which hands them on to its blocks.

        Args:
            decoder: the language model without its head.
            like: (B, T, D), gives dtype and device.
            positions: (B, T, 4), see :meth:`place`.
        """
        raise NotImplementedError

    def place(
        self,
        is_image: Tensor,
        grid_hw: Tensor,
        geometry: ImageGeometry,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Where all tokens stand.

        Args:
            is_image: (B, T) bool, the image slots.
            grid_hw: (N, 2) int64, rows and columns of each image's tokens.
            geometry: says whether there are class and split tokens.
            attention_mask: (B, T), 0 at padding, which stands at 0.
            cu_seqlens: (S + 1,) boundaries of samples over the flattened tokens; default: a row is a sample.

        Returns:
            (B, T, 4) int64: t, h, w, and the step at which a word behind the token would stand.

        Raises:
            LitEveError: ``attention_mask`` has another shape.
        """
        if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.shape != is_image.shape):
            raise LitEveError(
                f"where tokens stand needs an attention_mask {tuple(is_image.shape)}, which tells padding alone; or give "
                "token_positions (model.position_tokens)"
            )
        first = starts_of_samples(is_image, cu_seqlens)  # (B * T,)
        shape, is_image = is_image.shape, is_image.flatten()  # (B * T,)
        in_grid, row, column, size = _in_images(is_image, grid_hw, geometry, self.steps)
        step = torch.where(in_grid, size * (row + column == 0), 1)  # an image takes its steps at its first token
        if attention_mask is not None:
            step = step * (attention_mask.flatten() != 0)
        end = step.cumsum(0)
        end = end - (end - step)[first]  # from the beginning of the sample
        start = end - torch.where(in_grid, size, step)
        positions = torch.stack([*self.stand(start, row, column), end], -1)  # (B * T, 4)
        if attention_mask is not None:
            positions = positions * (attention_mask.flatten() != 0)[:, None]
        return positions.view(*shape, 4)

    def following(self, positions: Tensor, count: int) -> Tensor:
        """Where the next words stand.

        Args:
            positions: (B, K, 4) of what is there.
            count: n

        Returns:
            (B, n, 4)
        """
        start = positions[:, -1:, 3] + torch.arange(count, device=positions.device)  # (B, n)
        zero = torch.zeros_like(start)
        return torch.stack([*self.stand(start, zero, zero), start + 1], -1)


def _in_images(is_image: Tensor, grid_hw: Tensor, geometry: ImageGeometry, steps: Steps) -> tuple[Tensor, ...]:
    """Of each token (B * T,): whether it is in the grid of an image, its row and column there, and the steps of that image."""
    zero = torch.zeros_like(is_image, dtype=torch.long)
    if not len(grid_hw):
        return torch.zeros_like(is_image), zero, zero, zero
    rows, columns = grid_hw[:, 0], grid_hw[:, 1] + int(geometry.split_token)  # (N,)
    slots = rows * columns + int(geometry.class_token)  # (N,)
    ends = slots.cumsum(0)
    slot = is_image.cumsum(0) - 1
    image = torch.searchsorted(ends, slot, right=True).clamp(max=len(ends) - 1)
    offset = slot - (ends - slots)[image] - int(geometry.class_token)
    in_grid = is_image & (offset >= 0)
    row, column = (torch.where(in_grid, x, 0) for x in (offset // columns[image], offset % columns[image]))
    return in_grid, row, column, torch.where(in_grid, steps(rows, columns)[image], 0)


POSITIONS: Registry[Positions] = Registry("kind of positions")


@POSITIONS.register("sequential")
class Sequential(Positions):
    """Tokens are counted from 0, those of images as well."""

    is_sequential = True


def known_positions(name: str, length: int, given: Tensor | None, found: Tensor | None, past: int) -> Tensor:
    """The positions of the tokens that the decoder is about to read: (B, T, 4).

    Args:
        name: of the kind of positions.
        length: T.
        given: (B, T, 4), or (B, K, 4) with those in the KV cache; None if the caller gave none.
        found: (B, T, 4), what the tokens alone say; None if there were none to look at.
        past: how many tokens are in the KV cache.

    Raises:
        LitEveError: they cannot be known.
    """
    if given is not None:
        if given.ndim != 3 or given.shape[1] not in (length, past + length) or given.shape[2] != 4:
            raise LitEveError(
                f"token_positions has the shape {tuple(given.shape)}, but each of {length} tokens, or of all {past + length} "
                "with those in the KV cache, has 4 numbers (model.position_tokens)"
            )
        return given[:, -length:]
    if past:
        raise LitEveError(
            f"positions {name!r} must know what is in the KV cache: call generate, or give token_positions "
            "(model.position_tokens of all tokens)"
        )
    if found is None:
        raise LitEveError(
            f"inputs_embeds do not tell where tokens stand, and positions {name!r} must know: give token_positions beside them "
            "(model.position_tokens)"
        )
    return found


def rotary_of(decoder: PreTrainedModel, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's own cosines and sines at any positions.

    Args:
        decoder: with a module ``rotary_emb``.
        like: gives dtype and device.
        positions: (B, T, n) int64.

    Returns:
        (n, B, T, r) each, r of them for the rotated channels of a head.
    """
    rotary: nn.Module = decoder.rotary_emb
    count = positions.shape[-1]
    both = rotary(like, positions.permute(2, 0, 1).flatten(0, 1))  # (n * B, T, r) each
    return tuple(x.unflatten(0, (count, -1)) for x in both)
