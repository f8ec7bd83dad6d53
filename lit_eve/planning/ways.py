"""Ways out where a recipe does not fit: each is measured as the recipe itself, and named only if it does fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from torch import nn

from lit_eve.errors import LitEveError
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.checkpoints.catalog import decoder_names
from lit_eve.planning.gpus import GIB, Gpu
from lit_eve.planning.memory import Holdings, Layout, Measured, measure, meta_batch
from lit_eve.training.auxiliary import planned_auxiliaries
from lit_eve.training.recipe import Recipe
from lit_eve.training.stages import Lora

MOST_GPUS = 1024


@dataclass(frozen=True)
class Way:
    """A change with which a GPU has enough memory.

    Args:
        settings: keys of the recipe, as in ``data.rows=1``.
        gpus: how many.
        total: bytes on each.
    """

    settings: tuple[str, ...]
    gpus: int
    total: int


def ways_to_fit(
    recipe: Recipe,
    held: Holdings,
    row: Mapping[str, int],
    gpus: int,
    gpu: Gpu,
) -> list[Way]:
    """Less memory by recomputation, by fewer rows, or by more GPUs that share the model under FSDP2; the smallest changes.

    Args:
        recipe: what does not fit.
        held: what its model keeps.
        row: the heaviest row (:meth:`TypicalEpoch.heaviest_row`).
        gpus: how many there are.
        gpu: their kind.
    """
    data, checkpointing = recipe.data, recipe.module.gradient_checkpointing

    @cache
    def measured(rows: int, on: bool) -> Measured:
        return measure(held.model, meta_batch(held.model, rows, data.max_tokens, row), on, recipe.module.forward_arguments)

    def total(settings: tuple[str, ...], rows: int, on: bool, count: int) -> int | None:
        """Bytes on each GPU; None where it is too much, or the rows cannot be shared out."""
        if not _shared_out(recipe, rows, count):
            return None
        layout = Layout.of(recipe.trainer, count)
        if "trainer.strategy=fsdp2" in settings:
            layout = Layout(count, True, 1, layout.stored, layout.computed)
        size = held.memory(layout, measured(rows, on)).total
        return size if size <= gpu.memory_gib * GIB else None

    sharding = () if Layout.of(recipe.trainer, gpus).gathers else ("trainer.strategy=fsdp2",)
    recomputing = () if checkpointing else ("model.gradient_checkpointing=true",)
    fewer = list(range(data.rows - 1, 0, -1))
    # (settings, rows, checkpointing), each a little more than the one before
    changes = [((), data.rows, checkpointing), (recomputing, data.rows, True)]
    changes += [((f"data.rows={rows}",), rows, checkpointing) for rows in fewer]
    changes += [((*recomputing, f"data.rows={rows}"), rows, True) for rows in fewer]
    if sharding and gpus > 1:
        changes += [((*sharding, *settings), rows, on) for settings, rows, on in changes]
    ways = []
    for settings, rows, on in dict.fromkeys(changes):
        if settings and (size := total(settings, rows, on, gpus)) is not None:
            ways.append(Way(settings, gpus, size))
            break
    for settings, rows, on in (((), data.rows, checkpointing), ((*recomputing, *_one_row(data.rows)), 1, True)):
        settings, limit = (*sharding, *settings), min([MOST_GPUS, *(way.gpus - 1 for way in ways if way.gpus > gpus)])
        counts = [count for count in range(gpus + 1, limit + 1) if _shared_out(recipe, rows, count)]
        place = bisect_left(counts, True, key=lambda count: total(settings, rows, on, count) is not None)
        if place < len(counts):
            ways.append(Way(settings, counts[place], total(settings, rows, on, counts[place])))
    return ways


def adapters(recipe: Recipe, row: Mapping[str, int], gpus: int, gpu: Gpu) -> Way | None:
    """Adapters in place of the decoder's own weights, with recomputation where it must be; else as :func:`ways_to_fit`."""
    module, layout = recipe.module, Layout.of(recipe.trainer, gpus)
    if module.stage.lora is not None:
        return None
    try:  # not without peft, and not beside other kinds of decoders
        model = replace(module.blueprint, lora=Lora()).skeleton(planned=True).to(layout.computed)
        auxiliaries = planned_auxiliaries(module, model)
        replace(module.stage, lora=Lora()).apply(model, auxiliaries)
    except LitEveError:
        return None
    held = Holdings(model, module.optimizer, auxiliaries)
    batch, setting = meta_batch(model, recipe.data.rows, recipe.data.max_tokens, row), f"model.lora.rank={Lora().rank}"
    for on in dict.fromkeys((module.gradient_checkpointing, True)):
        step = measure(model, batch, on, module.forward_arguments)
        size = held.memory(layout, step).total
        if size <= gpu.memory_gib * GIB:
            more = () if on == module.gradient_checkpointing else ("model.gradient_checkpointing=true",)
            return Way((*more, setting), gpus, size)
    return None


def smaller_decoder(
    recipe: Recipe, model: EveForConditionalGeneration, row: Mapping[str, int], gpus: int, gpu: Gpu
) -> Way | None:
    """The largest decoder of the catalog that fits in place of the recipe's; else as :func:`ways_to_fit`."""
    layout, blueprint = Layout.of(recipe.trainer, gpus), recipe.module.blueprint
    others: dict[str, tuple[EveForConditionalGeneration, Mapping[str, nn.Module]]] = {}
    for name in decoder_names():
        try:
            other = replace(blueprint, decoder=name).skeleton(planned=True).to(layout.computed)
            auxiliaries = planned_auxiliaries(recipe.module, other)
            recipe.module.stage.apply(other, auxiliaries)
        except LitEveError:  # the recipe's other parts, or its stage, do not go with it
            continue
        others[name] = other, auxiliaries
    count = {name: other.num_parameters() for name, (other, _) in others.items()}
    for name in sorted(others, key=count.get, reverse=True):
        if count[name] >= model.num_parameters():
            continue
        other, auxiliaries = others[name]
        batch = meta_batch(other, recipe.data.rows, recipe.data.max_tokens, row)
        step = measure(other, batch, recipe.module.gradient_checkpointing, recipe.module.forward_arguments)
        size = Holdings(other, recipe.module.optimizer, auxiliaries).memory(layout, step).total
        if size <= gpu.memory_gib * GIB:
            return Way((f"model.decoder={name}",), gpus, size)
    return None


def _one_row(rows: int) -> tuple[str, ...]:
    return ("data.rows=1",) if rows > 1 else ()


def _shared_out(recipe: Recipe, rows: int, gpus: int) -> bool:
    """Whether the global batch, and the replicas of hybrid sharding, can be shared out to so many GPUs."""
    batch = recipe.data.global_batch
    try:
        Layout.of(recipe.trainer, gpus)
    except LitEveError:
        return False
    return batch is None or batch % (rows * gpus) == 0
