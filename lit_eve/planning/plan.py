"""What a training would cost, before it is started: parameters, FLOPs, memory, steps and days of a recipe on given GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_eve.errors import ConfigError
from lit_eve.losses import AbsentTeacher
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.decoders.quantized import quantize, unpacked_sizes
from lit_eve.models.supervision import share_on
from lit_eve.planning.flops import Flops, total_flops, training_flops
from lit_eve.planning.gpus import GIB, Gpu
from lit_eve.planning.memory import Holdings, Layout, Memory, measure, meta_batch
from lit_eve.planning.needs import IMAGE_BYTES, Needs, checkpoint_bytes, host_bytes
from lit_eve.planning.typical_data import TypicalEpoch, typical_epoch
from lit_eve.planning.ways import Way, adapters, smaller_decoder, ways_to_fit
from lit_eve.training.auxiliary import planned_auxiliaries
from lit_eve.training.module import LitEve
from lit_eve.training.recipe import Recipe

if TYPE_CHECKING:
    from jsonargparse import Namespace

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Parameters:
    """Parameters of one part of the model."""

    trainable: int
    frozen: int


@dataclass(frozen=True)
class Steps:
    """How a training is cut into optimizer steps."""

    data: str  # where the numbers come from
    samples: int  # of an epoch
    rows: int  # packed rows of an epoch
    padding: float  # share of the rows' tokens that holds no sample
    tokens_per_sample: float
    images_per_sample: float
    rows_per_step: int
    accumulated: int  # micro-batches of a GPU per step
    samples_per_step: float
    tokens_per_step: int  # padding included
    steps: int


@dataclass(frozen=True)
class Plan:
    """What a recipe costs.

    Args:
        stage: its name.
        gpus: how many.
        gpu: of which kind.
        parameters: by part of the model, and by auxiliary part.
        flops: of an average sample, by part; losses that a schedule leaves out for a time count by their shares.
        shares: of the run in which a loss at image tokens, or the teacher, takes part, where that is not all of it.
        memory: on each GPU, as the recipe says.
        memory_other: the same with gradient checkpointing turned over (None if not asked for).
        checkpointing: what the recipe says.
        steps: data and steps.
        mfu: share of the GPUs' peak that is assumed to be reached.
        days: of computing, without validation, checkpoints and interruptions; None where it does not fit.
        needs: disk, host memory, loaders.
        ways: changes with which it would fit; none if it does.
        unmeasured: the subclass of LitEve whose own losses are neither in ``flops`` nor in ``activations``; None without one.
    """

    stage: str
    gpus: int
    gpu: Gpu
    parameters: dict[str, Parameters]
    flops: dict[str, Flops]
    shares: dict[str, float]
    memory: Memory
    memory_other: Memory | None
    checkpointing: bool
    steps: Steps
    mfu: float
    days: float | None
    needs: Needs
    ways: tuple[Way, ...] = ()
    unmeasured: str | None = None

    @property
    def fits(self) -> bool:
        """Whether a GPU has enough memory."""
        return self.memory.total <= self.gpu.memory_gib * GIB

    @property
    def gpu_hours(self) -> float | None:
        """Days of all GPUs in hours; None where it does not fit."""
        return None if self.days is None else 24 * self.gpus * self.days


def make_plan(
    recipe: Recipe,
    gpus: int,
    gpu: Gpu,
    mfu: float = 0.4,
    num_samples: float | None = None,
    compare: bool = True,
    progress: bool = False,
) -> Plan:
    """Plan a recipe. The model is never built: it exists on the meta device only.

    Args:
        gpus: number of GPUs, all nodes together.
        gpu: their kind.
        mfu: model FLOPs utilisation: the share of the peak that training reaches, recomputation not counted as work.
        num_samples: assume an epoch of so many samples instead of counting the shards.
        compare: also measure memory with gradient checkpointing turned over, and look for ways out where it does not fit.
        progress: show progress bars while shards are indexed.

    Raises:
        ConfigError: a value that makes no sense, rows of a step that cannot be shared out to the GPUs, or auxiliary parts that
            cannot be made without a real model.
        CheckpointError: the decoder is neither well known nor to be found.
    """
    if gpus < 1:
        raise ConfigError(f"--gpus must be at least 1, got {gpus}")
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu must lie between 0 and 1, got {mfu:g}")
    if num_samples is not None and not 1 <= num_samples < math.inf:
        raise ConfigError(f"--samples must be a number of at least 1, got {num_samples:g}")
    _check_end(recipe.trainer)
    layout = Layout.of(recipe.trainer, gpus)
    if layout.gathers:
        recipe.module.stage.check_sharded()
    accumulated = _accumulated(recipe, gpus)
    model, own = _model(recipe, layout.computed)
    epoch = typical_epoch(recipe, model.geometry, num_samples, progress)
    steps = _steps(recipe, epoch, gpus, accumulated)
    shares = _shares_of_run(model)
    flops = _flops_per_sample(recipe, model, own, epoch)
    flops |= {part: Flops(*(share * number for number in flops[part])) for part, share in shares.items() if part in flops}

    row = epoch.heaviest_row(model.geometry, recipe.data.max_tokens)
    checkpointing = recipe.module.gradient_checkpointing
    batch = meta_batch(model, recipe.data.rows, recipe.data.max_tokens, row)
    held, arguments = Holdings(model, recipe.module.optimizer, own), recipe.module.forward_arguments
    memory = {on: held.memory(layout, measure(model, batch, on, arguments)) for on in {checkpointing, checkpointing ^ compare}}
    fits = memory[checkpointing].total <= gpu.memory_gib * GIB
    ways = []
    if compare and not fits:
        ways = [*ways_to_fit(recipe, held, row, gpus, gpu), adapters(recipe, row, gpus, gpu)]
        ways.append(smaller_decoder(recipe, model, row, gpus, gpu))

    saved = sum(one.trainable + one.frozen for name, one in _parameters(model, own).items() if name != "teacher")
    saved *= layout.stored.itemsize
    work = total_flops(flops) * steps.samples_per_step * steps.steps
    seconds = work / (gpus * gpu.teraflops * 1e12 * mfu) if fits else None
    images = steps.images_per_sample * steps.samples_per_step * steps.steps
    return Plan(
        stage=recipe.module.stage.name,
        gpus=gpus,
        gpu=gpu,
        parameters=_parameters(model, own),
        flops=flops,
        shares=shares,
        memory=memory[checkpointing],
        memory_other=memory.get(not checkpointing),
        checkpointing=checkpointing,
        steps=steps,
        mfu=mfu,
        days=None if seconds is None else seconds / SECONDS_PER_DAY,
        needs=Needs(
            images_per_second=None if seconds is None else images / seconds,
            data=epoch.num_bytes if epoch.num_bytes is not None else _assumed_bytes(epoch),
            data_counted=epoch.num_bytes is not None,
            checkpoints=checkpoint_bytes(memory[checkpointing], layout, saved),
            host=host_bytes(memory[checkpointing], layout, gpus, recipe.data.num_workers, saved),
        ),
        ways=tuple(way for way in ways if way is not None),
        unmeasured=_with_own_losses(recipe.module),
    )


def _assumed_bytes(epoch: TypicalEpoch) -> int:
    return round(float(epoch.num_images.mean()) * epoch.num_samples * IMAGE_BYTES)


def _model(recipe: Recipe, dtype: torch.dtype) -> tuple[EveForConditionalGeneration, dict[str, nn.Module]]:
    """The recipe's model and auxiliary parts on the meta device, with gradients required where the stage trains."""
    model = recipe.module.blueprint.skeleton(planned=True).to(dtype)
    own = planned_auxiliaries(recipe.module, model)
    if recipe.module.stage.packs_weights:
        quantize(model.language_model)
    recipe.module.stage.apply(model, own)
    return model, own


def _with_own_losses(module: LitEve) -> str | None:
    kind = type(module)
    return None if kind.auxiliary_losses is LitEve.auxiliary_losses else kind.__name__


def _parameters(model: EveForConditionalGeneration, own: Mapping[str, nn.Module]) -> dict[str, Parameters]:
    unpacked = unpacked_sizes(model)
    parts = {
        name: [(p.requires_grad, unpacked.get(f"{name}.{key}", p.numel())) for key, p in part.named_parameters()]
        for name, part in (*model.named_children(), *own.items())
    }
    return {
        name: Parameters(*(sum(size for trains, size in part if trains is trained) for trained in (True, False)))
        for name, part in parts.items()
    }


def _flops_per_sample(
    recipe: Recipe, model: EveForConditionalGeneration, own: Mapping[str, nn.Module], epoch: TypicalEpoch
) -> dict[str, Flops]:
    teacher = None if model.teacher is None else model.teacher.config
    try:
        flops = training_flops(model.config, epoch.workload, recipe.module.stage, teacher, own)
    except ConfigError as error:
        raise ConfigError(f"model.decoder: {error}") from error
    if isinstance(model.teacher, AbsentTeacher):
        del flops["teacher"]
    count = len(epoch.lengths)
    return {part: Flops(f.forward / count, f.backward / count) for part, f in flops.items()}


def _shares_of_run(model: EveForConditionalGeneration) -> dict[str, float]:
    """In which part of the run a supervision runs, and the teacher, if that is not all of it; a weight of 0 is none of it."""
    weights = model.supervision_weights
    shares = {part: share_on(weight) for part, weight in weights.items()}
    if model.teacher is not None:
        shares["teacher"] = share_on(*(weights[part] for part, one in model.supervisions.items() if one.teacher_states))
    return {part: share for part, share in shares.items() if share < 1}


def _accumulated(recipe: Recipe, gpus: int) -> int:
    """Micro-batches of a GPU per step."""
    rows, wanted = recipe.data.rows * gpus, recipe.data.global_batch
    if wanted is None:
        return recipe.trainer.accumulate_grad_batches
    if wanted % rows:
        fitting = [n for n in range(1, wanted + 1) if wanted % (recipe.data.rows * n) == 0]
        hint = f"--gpus of {', '.join(map(str, fitting))}" if fitting else "a smaller data.rows"
        raise ConfigError(
            f"data.global_batch = {wanted} rows cannot be shared out to {gpus} GPUs x data.rows = {recipe.data.rows}; "
            f"choose {hint}, or another data.rows or data.global_batch"
        )
    return wanted // rows


def _check_end(trainer: Namespace) -> None:
    for key in ("max_epochs", "max_steps"):
        if (value := trainer[key]) is not None and value < 1 and value != -1:
            raise ConfigError(f"trainer.{key} = {value}: there is no training to plan")
    if trainer.max_epochs == trainer.max_steps == -1:
        raise ConfigError("the training has no end: set trainer.max_epochs or trainer.max_steps")


def _steps(recipe: Recipe, epoch: TypicalEpoch, gpus: int, accumulated: int) -> Steps:
    rows = recipe.data.rows * gpus * accumulated
    epochs, limit = recipe.trainer.max_epochs, recipe.trainer.max_steps
    steps = math.ceil(epoch.num_rows / rows) * (epochs or 1)
    if limit != -1:
        steps = limit if epochs in (None, -1) else min(steps, limit)
    return Steps(
        data=epoch.origin,
        samples=epoch.num_samples,
        rows=epoch.num_rows,
        padding=epoch.padding,
        tokens_per_sample=float(epoch.lengths.mean()),
        images_per_sample=float(epoch.num_images.mean()),
        rows_per_step=rows,
        accumulated=accumulated,
        samples_per_step=rows * epoch.samples_per_row,
        tokens_per_step=rows * recipe.data.max_tokens,
        steps=steps,
    )
