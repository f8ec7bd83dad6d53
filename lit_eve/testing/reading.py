"""Batches are read as their samples are alone: packed, padded, with images and without, with checkpointing and without.

Notation: B rows, T tokens per row, V vocabulary, N images, Q image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_eve.errors import ConfigError
from lit_eve.models import PACKED, EveForConditionalGeneration
from lit_eve.testing.comparing import GRADIENT, LOGITS, LOSS, compare, compare_named, finite
from lit_eve.testing.samples import LAYOUTS, Sample, make_sample, make_samples, packed, padded, without_labels


def losses_and_gradients(
    model: EveForConditionalGeneration, *batches: dict[str, Tensor], **arguments: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of batches, one after the other: the sums of their losses, ``loss`` and those it is made of, and of their gradients.

    Args:
        batches: with labels.
        **arguments: of every forward.

    Returns:
        losses by name; gradients by parameter, without parameters that have none.
    """
    model.zero_grad()
    losses: dict[str, Tensor] = {}
    torch.manual_seed(0)  # for what is masked or dropped at random
    for batch in batches:
        output = model(**batch, **arguments)
        output.loss.backward()
        for name, value in {**{name: term.total for name, term in output.terms.items()}, "loss": output.loss}.items():
            losses[name] = losses.get(name, 0) + value.detach()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return losses, gradients


@contextmanager
def attention(model: EveForConditionalGeneration, name: str) -> Iterator[None]:
    """The decoder attends by another implementation inside."""
    config = model.language_model.config
    before = config._attn_implementation
    model.language_model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.language_model.set_attn_implementation(before)


def implementations(model: EveForConditionalGeneration) -> Sequence[str]:
    """The decoder's own attention, and where this takes packed rows, one with a mask over whole rows."""
    own = model.language_model.config._attn_implementation
    return (own, "eager") if own == PACKED else (own,)


# ---- the checks


@torch.no_grad()
def check_images_alone(model: EveForConditionalGeneration) -> None:
    """No image sees the others of its batch before the decoder does."""
    sample = make_sample(model, LAYOUTS["several images"])
    grids = sample["image_grid_hw"]
    patches = sample["pixel_values"].split(grids.prod(1).tolist())
    window = model.geometry.pool_size**2
    image = torch.repeat_interleave(torch.arange(len(grids)), grids.prod(1) // window)  # (Q,)
    token_grids = model.geometry.token_grid_of(grids)
    together = model.embed_images(sample["pixel_values"], image, len(grids), token_grids)
    what = (
        f"patch embedding {model.config.patch_embedding['name']!r}: an image of a batch is embedded otherwise than alone, so "
    )
    what += "it sees the others"
    for index, own in enumerate(patches):
        one = torch.zeros(len(own) // window, dtype=torch.long)
        alone = model.embed_images(own, one, 1, token_grids[index : index + 1])
        compare(together.tokens[image == index], alone.tokens, what, LOGITS)
        if alone.classes is not None:
            compare(together.classes[index], alone.classes[0], what, LOGITS)


def check_packed(model: EveForConditionalGeneration) -> None:
    """Samples in packed rows are what they are alone: losses, gradients and logits."""
    samples = make_samples(model)
    compare_packed(model, samples)
    with torch.no_grad():
        for name in implementations(model):
            with attention(model, name):
                compare_packed_logits(model, samples)


def compare_packed(model: EveForConditionalGeneration, samples: Sequence[Sample]) -> None:
    """Losses and gradients of samples in two packed rows, and of the same samples one by one."""
    counts = {
        "num_targets": sum(int((sample["labels"] != -100).sum()) for sample in samples),
        "num_images": sum(len(sample["image_grid_hw"]) for sample in samples),
    }
    alone = losses_and_gradients(model, *(padded([sample]) for sample in samples), **counts)
    together = losses_and_gradients(model, packed([samples[:2], samples[2:]]), **counts)
    own = "{name} of packed rows is not what their samples have alone, summed: something sees other samples of the row, or a "
    own += "loss is not a sum over the images or tokens of the batch"
    compare_named(together[0], alone[0], own, LOSS)
    compare_named(together[1], alone[1], "the gradient of " + own, GRADIENT)


def compare_packed_logits(model: EveForConditionalGeneration, samples: Sequence[Sample]) -> None:
    """Logits of samples in two packed rows, and of the same samples one by one."""
    alone = [model(**without_labels(padded([sample]))).logits[0] for sample in samples]  # (T, V) each
    rows = model(**without_labels(packed([samples[:2], samples[2:]]))).logits  # (2, T, V)
    for row, parts in zip(rows, (alone[:2], alone[2:]), strict=True):
        expected = torch.cat(parts)
        implementation = model.language_model.config._attn_implementation
        what = f"logits of a packed row (attention {implementation!r}) are not those of its samples alone"
        compare(row[: len(expected)], expected, what, LOGITS)


@torch.no_grad()
def check_padded(model: EveForConditionalGeneration) -> None:
    """Rows of a left-padded batch are what they are alone."""
    compare_padded_logits(model, make_samples(model))


def compare_padded_logits(model: EveForConditionalGeneration, samples: Sequence[Sample]) -> None:
    """Logits of a left-padded batch, as ``generate`` gives it, and of its samples one by one."""
    batch = without_labels(padded(samples, "left"))
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)  # (B, T)
    rows = model(**batch, position_ids=positions).logits  # (B, T, V)
    for row, sample in zip(rows, samples, strict=True):
        expected = model(**without_labels(padded([sample]))).logits[0]
        what = "logits of a left-padded row are not those of its sample alone: something depends on the place in the row, or "
        compare(row[-len(expected) :], expected, what + "sees padding", LOGITS)


def check_every_kind_of_sample(model: EveForConditionalGeneration) -> None:
    """Whatever is in a batch, the loss is finite and every trainable parameter takes part: so processes do the same."""
    for name, layout in LAYOUTS.items():
        losses, gradients = losses_and_gradients(model, packed([[make_sample(model, layout)]]))
        finite(losses, f"{{name}} of a batch with {name} is not finite")
        finite(gradients, f"the gradient of {{name}} is not finite in a batch with {name}")
        for parameter, value in model.named_parameters():
            assert parameter in gradients or not value.requires_grad, (
                f"{parameter} has no gradient in a batch with {name}, not even a gradient of 0: under FSDP2 and DDP, processes "
                "with other batches would wait for it"
            )


def check_checkpointing(model: EveForConditionalGeneration) -> None:
    """Blocks that are computed again in the backward pass give the same losses and gradients.

    Raises:
        ConfigError: the family of the decoder has no such thing.
    """
    batch = packed([make_samples(model)])
    model.train()
    try:
        kept = losses_and_gradients(model, batch)
        model.recompute_blocks()
    except ValueError as error:
        raise ConfigError(f"gradient_checkpointing: {error}") from error
    finally:
        model.eval()
    model.train()
    again = losses_and_gradients(model, batch)
    model.recompute_blocks(on=False)
    model.eval()
    compare_named(again[0], kept[0], "{name} with gradient checkpointing is not what it is without", LOSS)
    compare_named(again[1], kept[1], "the gradient of {name} with gradient checkpointing is not what it is without", GRADIENT)
