"""What ``lit-eve plan`` says that a training step keeps is what it keeps on the CPU: to the byte, activations but for rounding.

The two sides share no counter. The plan runs a model without contents and adds up what its tensors would take. Here a model
trains, and what autograd saves for the backward pass is followed by its storages, each counted once, as long as it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from lit_eve.models import PACKED, EveForConditionalGeneration
from lit_eve.planning.memory import Holdings, Layout, measure, meta_batch
from lit_eve.testing.reading import attention
from lit_eve.testing.samples import make_samples, packed
from lit_eve.training.optimizers import build_optimizer, trained_parameters

BOUND = 0.01
"""Largest difference of the activations, as a share of those that are kept: 0.6 % over all that is registered."""

_OPTIMIZER = {"name": "adamw"}
_LAYOUT = Layout(1, False, 1, torch.float32, torch.float32)
_EXACT = ("weights", "teacher", "gradients", "optimizer")


def check_kept(model: EveForConditionalGeneration, meta: EveForConditionalGeneration) -> None:
    """Compare the bytes of the second training step: the first one has no states of the optimizer yet.

    Args:
        model: what trains requires gradients; its weights stay as they are.
        meta: the same without weights, from :func:`~lit_eve.planning.flops.meta_model`.
    """
    samples = make_samples(model)
    batch = packed([samples])
    batch["image_positions"] = (batch["input_ids"].flatten() == model.config.image_token_id).nonzero().flatten()
    keys = {"images": "image_grid_hw", "slots": "image_positions", "patches": "pixel_values", "targets": "target_positions"}
    row = {key: len(batch[name]) for key, name in keys.items()}
    row |= {"samples": len(batch["cu_seqlens"]) - 1, "longest": batch["max_seqlen"]}
    planned = Holdings(meta, _OPTIMIZER).memory(
        _LAYOUT, measure(meta, meta_batch(meta, 1, batch["input_ids"].shape[1], row), False)
    )
    model.train()
    try:
        kept = _kept(model, batch)
    finally:
        model.eval()
    for what in _EXACT:
        assert getattr(planned, what) == kept[what], (
            f"lit-eve plan counts {getattr(planned, what):,} bytes of {what}, a training step keeps {kept[what]:,}"
        )
    found = kept["activations"]
    assert abs(planned.activations - found) <= BOUND * found, (
        f"lit-eve plan counts {planned.activations:,} bytes of activations, a training step keeps {found:,}: "
        f"{planned.activations / found - 1:+.1%}, where {BOUND:.0%} are allowed"
    )


def _kept(model: EveForConditionalGeneration, batch: Mapping[str, Any]) -> dict[str, int]:
    given = [value for value in batch.values() if isinstance(value, Tensor)]
    saved = _Saved([*model.parameters(), *model.buffers(), *given])
    rates = {name: 0.0 for name, p in model.named_parameters() if p.requires_grad}
    trained = [one.parameter for one in trained_parameters(model, rates)]
    optimizer = build_optimizer(_OPTIMIZER, trained_parameters(model, rates))
    for _ in range(2):
        optimizer.zero_grad()
        with _as_on_a_gpu(model), model.supervised_by(*model.supervisions):
            with saved_tensors_hooks(saved.note, lambda tensor: tensor):
                loss = model(**batch).loss
            activations = saved.nbytes
            loss.backward()
        optimizer.step()
    kept = {
        "gradients": sum(parameter.grad.nbytes for parameter in trained),
        "optimizer": sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
        "activations": activations + _bytes(given),
        "teacher": 0 if model.teacher is None else _bytes([*model.teacher.parameters(), *model.teacher.buffers()]),
    }
    kept["weights"] = _bytes([*model.parameters(), *model.buffers()]) - kept["teacher"]
    optimizer.zero_grad()
    return kept


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _Saved:
    """The storages of what autograd saves, other than those of ``existing``, as long as they are there."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._saved: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._existing:
            # A weak reference keeps the place of its storage, so that no other is taken for it.
            self._saved[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(size for storage, size in self._saved.values() if not storage.expired())


@contextmanager
def _as_on_a_gpu(model: EveForConditionalGeneration) -> Iterator[None]:
    """Attention as a plan takes it in float32: under one mask, by kernels that keep no scores."""
    is_packed = model.language_model.config._attn_implementation == PACKED
    plain = F.scaled_dot_product_attention

    def without_scores(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if options.pop("enable_gqa", False):  # kernels of GPUs for float32 know no groups
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        query = query.transpose(1, 2).contiguous().transpose(1, 2)  # on the CPU, what comes out lies in memory as queries do
        if query.shape[-1] == value.shape[-1] and not options.get("dropout_p"):
            return plain(query, key, value, attn_mask=attn_mask, **options)
        if attn_mask is not None:  # the CPU has such a kernel neither for values of another width nor with dropout
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        return checkpoint(plain, query, key, value, attn_mask, use_reentrant=False, **options)

    with attention(model, "sdpa") if is_packed else nullcontext():
        F.scaled_dot_product_attention = without_scores
        try:
            yield
        finally:
            F.scaled_dot_product_attention = plain
