"""What the stages of an arm cost, and the steps that make arms equal.

FLOPs are those of ``lit-eve plan``. Seconds are measured: a short run of each stage, one after the other, on an idle machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.planning.gpus import Gpu, get_gpu
from lit_eve.sweeps.ablation import Ablation
from lit_eve.sweeps.recipe import INIT, ArmStage, arguments_of

ANY_GPU = "a100-40g"
"""FLOPs do not depend on it."""


@dataclass(frozen=True)
class StageCost:
    """What a stage costs."""

    steps: int
    samples_per_step: float
    flops_per_step: float
    gpu_days: float | None = None
    """None: it does not fit on the GPUs that were asked for."""

    @property
    def flops(self) -> float:
        """Of all steps."""
        return self.steps * self.flops_per_step


def plan_stage(
    stage: ArmStage, folders: Mapping[str, Path] | None = None, gpus: int = 1, gpu: Gpu | None = None, mfu: float = 0.4
) -> StageCost:
    """Plan a stage of an arm, as ``lit-eve plan`` does; earlier stages need not have been trained.

    Args:
        stage: as the arm runs it.
        folders: of the recipe, and those of a trial in their place.
        gpus, gpu, mfu: how many GPUs, of which kind, and the share of their peak that training reaches.

    Raises:
        ConfigError: it cannot be planned; the message names the stage.
    """
    from lit_eve.planning.plan import make_plan
    from lit_eve.training.recipe import read_recipe

    changes = {**stage.changes, **stage.inherited}
    if "model.decoder" in stage.inherited:
        changes[INIT] = None
    alone = ArmStage(stage.stage, changes, stage.stage.settings(changes), {})
    options = changes | alone.moved(folders or {})
    try:
        recipe = read_recipe("--config", str(stage.stage.path), *arguments_of(options))
        plan = make_plan(recipe, gpus, gpu or get_gpu(ANY_GPU), mfu, compare=False)
    except LitEveError as error:
        raise ConfigError(f"{stage.name}: {error}") from error
    flops = sum(part.total for part in plan.flops.values()) * plan.steps.samples_per_step
    days = None if plan.days is None or not plan.fits else gpus * plan.days
    return StageCost(plan.steps.steps, plan.steps.samples_per_step, flops, days)


def equal_steps(ablation: Ablation, costs: Mapping[str, Sequence[tuple[str, int, float]]]) -> dict[str, dict[str, int]]:
    """The steps of one stage of each arm with which all arms cost what the reference costs.

    Args:
        costs: by arm: name, steps and cost per step of its stages, in any unit.

    Raises:
        ConfigError: the other stages of an arm cost as much alone.
    """
    budget = sum(steps * each for _, steps, each in costs[ablation.reference])
    scaled = {}
    for arm, stages in costs.items():
        names = [name for name, _, _ in stages]
        name = ablation.scaled or names[-1]
        if name not in names:
            raise ConfigError(f"{ablation.path}: arm {arm!r} does not run {name!r}, whose steps would make arms equal (scaled)")
        others = sum(steps * each for other, steps, each in stages if other != name)
        each = next(each for other, _, each in stages if other == name)
        steps = round((budget - others) / each)
        if steps < 1:
            raise ConfigError(
                f"{ablation.path}: arm {arm!r} cannot be made equal: without {name} it costs {others:.3g}, and the reference "
                f"{budget:.3g}"
            )
        if arm != ablation.reference:
            scaled[arm] = {name: steps}
    return scaled
