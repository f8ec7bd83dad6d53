"""Image slots go through weights of their own, all other tokens through the decoder's; each token is computed once.

A module of the decoder gets a copy of itself as its child ``image``, and its class a forward that shares the tokens out. The
names of its own weights stay as they are, so that files, stages and shardings of the decoder fit: ``q_proj.weight`` is for
words, ``q_proj.image.weight`` for images. Where images stand comes as the keyword ``image_slots`` through the decoder to its
blocks, as the boundaries of packed samples do. So blocks that are computed again in the backward pass, or in another thread,
find their own.

Notation: B rows, T tokens per row, N = B * T, n image slots, m = N - n other tokens.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lit_eve.errors import LitEveError
from lit_eve.models.decoders.swapped import Swapped, swap
from lit_eve.models.splice import check


@dataclass(frozen=True)
class ImageSlots:
    """Which tokens of a batch are images', class and split tokens included; made once per forward pass."""

    order: Tensor  # (N,) int64 positions in the flattened B * T tokens: the other tokens' first, then the image slots'
    place: Tensor  # (N,) int64, its inverse
    count: int  # n
    rows: int  # B
    length: int  # T

    @classmethod
    def of(cls, like: Tensor, is_image: Tensor | None, positions: Tensor | None = None) -> ImageSlots | None:
        """Sort tokens.

        Args:
            like: (B, T, ...), on the device of the batch.
            is_image: B * T bools; None without images.
            positions: (n,) int64, where they are True, in order; if it is missing, the device is asked.

        Returns:
            None where there is nothing to do for weights of images: no image slots, and no gradients.

        Raises:
            LitEveError: there are not B * T of them, or ``positions`` are of other tokens (found as by
                :func:`~lit_eve.models.splice.check`).
        """
        rows, length = like.shape[:2]
        if is_image is not None and is_image.numel() != rows * length:
            raise LitEveError(f"image_mask has the shape {tuple(is_image.shape)}, but the tokens have {(rows, length)}")
        if is_image is None:
            is_image = torch.zeros(rows * length, dtype=torch.bool, device=like.device)
            positions = torch.empty(0, dtype=torch.long, device=like.device)
        given = positions is not None
        if not given:
            positions = is_image.flatten().nonzero().flatten()  # (n,)
        count = len(positions)
        if not count and not torch.is_grad_enabled():
            return None
        is_slot = torch.zeros(rows * length, dtype=torch.bool, device=like.device).index_fill(0, positions, True)  # (N,)
        if given:
            right = (is_slot == is_image.flatten()).all() & (is_slot.sum() == count)  # each of them once
            check(right, "image_positions are not those of the image slots in input_ids")
        slot, other = is_slot.cumsum(0) - 1, (~is_slot).cumsum(0) - 1
        place = torch.where(is_slot, slot + rows * length - count, other)  # (N,)
        order = torch.empty_like(place).scatter(0, place, torch.arange(rows * length, device=like.device))
        return cls(order, place, count, rows, length)


class _Turn:
    """What the modules of a block share while it runs; several read the same tensor (queries, keys and values)."""

    def __init__(self, slots: ImageSlots) -> None:
        self.slots = slots
        self._source: Tensor | None = None
        self._sorted: tuple[Tensor, Tensor] | None = None

    def sort(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, ...) -> (1, m, ...) of the other tokens and (1, n, ...) of the image slots.

        Where there are none, one token stands for them, which :meth:`merge` drops: so every weight has a gradient in every
        process, and no kernel has to do with nothing.
        """
        slots = self.slots
        if tokens.shape[:2] != (slots.rows, slots.length):
            raise LitEveError(
                f"a module with weights of its own for images got the shape {tuple(tokens.shape)} for "
                f"{slots.rows} x {slots.length} tokens"
            )
        if self._source is not tokens:
            ordered = _Permuted.apply(tokens.flatten(0, 1), slots.order, slots.place)  # (N, ...)
            others = len(ordered) - slots.count  # m
            # Cut first, so that the strides are those of a whole tensor: others keep linear layers from their fast path.
            parts = ordered[: max(others, 1)], ordered[min(others, len(ordered) - 1) :]
            self._source, self._sorted = tokens, (parts[0][None], parts[1][None])
        return self._sorted

    def merge(self, others: Tensor, images: Tensor) -> Tensor:
        """(1, m, ...) and (1, n, ...) -> (B, T, ...)."""
        slots = self.slots
        ordered = torch.cat([others[0, : slots.rows * slots.length - slots.count], images[0, : slots.count]])  # (N, ...)
        return _Permuted.apply(ordered, slots.place, slots.order).unflatten(0, (slots.rows, slots.length))


class _Permuted(torch.autograd.Function):
    """Rows in another order. Its backward pass gathers as well, where that of ``index_select`` would add up row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Permuted.apply(gradient, inverse, order), None, None


_thread = threading.local()  # torch.compile follows it, which it does not with a ContextVar


class Routed(Swapped):
    """Mixed into a module of (B, T, ...) tokens: image slots are computed by its child ``image``, the others by itself."""

    heads_first = False
    """Whether tokens are the third dimension, behind the heads."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, ...), or (B, h, T, ...) -> (B, h, T, ...)."""
        turn: _Turn | None = getattr(_thread, "turn", None)
        if turn is None:
            return super().forward(tokens)
        if self.heads_first:
            tokens = tokens.transpose(1, 2)
        others, images = turn.sort(tokens)
        merged = turn.merge(super().forward(others), self.image(images))
        return merged.transpose(1, 2) if self.heads_first else merged


class RoutedBlock(Swapped):
    """Mixed into a block of the decoder: tells the modules inside where images stand."""

    def forward(self, *args: Any, image_slots: ImageSlots | None = None, **kwargs: Any) -> Any:
        """As the block's, without ``image_slots``."""
        before = getattr(_thread, "turn", None)
        _thread.turn = None if image_slots is None else _Turn(image_slots)
        try:
            return super().forward(*args, **kwargs)
        finally:
            _thread.turn = before


def route(module: nn.Module, heads_first: bool = False) -> None:
    """Give a module a copy of itself for image slots, in place."""
    configs = {id(value): value for part in module.modules() for value in vars(part).values()}
    shared = {key: value for key, value in configs.items() if isinstance(value, PreTrainedConfig)}
    module.image = copy.deepcopy(module, shared)
    swap(module, Routed)
    if heads_first:
        module.heads_first = True


def route_block(block: nn.Module) -> None:
    """Let a block take ``image_slots``, in place."""
    swap(block, RoutedBlock, keeps_name=True)


def image_copies(model: nn.Module) -> dict[str, str]:
    """Names of the weights that are for image slots, and of those for other tokens beside them."""
    copies = {}
    for name, module in model.named_modules():
        if isinstance(module, Routed):
            for key in module.image.state_dict():
                copies[f"{name}.image.{key}"] = f"{name}.{key}"
    return copies


def modules_by_tokens(module: nn.Module, of_images: bool | None = None) -> Iterator[tuple[nn.Module, bool | None]]:
    """All modules in a module, and whether they compute image slots (True), the other tokens (False) or all (None)."""
    if isinstance(module, Routed):
        of_images = False
    yield module, of_images
    for name, child in module.named_children():
        yield from modules_by_tokens(child, True if isinstance(module, Routed) and name == "image" else of_images)
