"""The ablations of experiments/ablations: every arm is one that could be trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_eve.nano.ground import CONFIG, ground_steps, make_ground
from lit_eve.nano.seeds import SEED_KEYS
from lit_eve.nano.steps import Journal
from lit_eve.sweeps.ablation import Ablation, read_ablation
from lit_eve.sweeps.costs import plan_stage
from lit_eve.sweeps.recipe import Recipe
from lit_eve.sweeps.trials import GROUND, make_trials
from tests.nano.test_pipeline import SMALL

ABLATIONS = sorted((Path(__file__).parents[2] / "experiments" / "ablations").glob("*.yaml"))


@pytest.fixture(params=ABLATIONS, ids=lambda path: path.stem)
def ablation(request: pytest.FixtureRequest) -> Ablation:
    return read_ablation(request.param)


def shipped(file: str) -> dict[str, Any]:
    """Settings of the hard world's ground."""
    return yaml.safe_load((CONFIG.with_name("nano_hard") / f"{file}.yaml").read_text())


def test_every_arm_is_read(ablation: Ablation, tmp_path: Path) -> None:
    """As train.py would read it, which test_trials.py shows of arms that it refuses."""
    trials = make_trials(ablation, tmp_path, Recipe.of(ablation))
    assert len(trials) == len(ablation.arms) * len(ablation.seeds)
    keys = {file: shipped(file).keys() for file in SEED_KEYS}
    for trial in trials:
        ground = trial.tasks[GROUND].settings
        assert set(ground) == {*SEED_KEYS, "with_teacher"}
        for file, own in keys.items():
            assert ground[file].keys() == own | trial.arm.changes.get(file, {}).keys(), f"{trial.name}, {file}"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands before the stages of the hard world: of its sizes, with few scenes, and trained for a step."""
    folder = tmp_path_factory.mktemp("ground")
    config = folder / "config"
    config.mkdir()
    for file in SEED_KEYS:
        (config / f"{file}.yaml").write_text(
            yaml.safe_dump(shipped(file) | (SMALL["world"] if file == "world" else {"steps": 1}))
        )
    journal = Journal(folder / "steps")
    make_ground(ground_steps(folder, config, True, journal), journal, but=["benchmarks"])
    return folder


@pytest.mark.slow
def test_every_stage_of_every_arm_can_be_planned(ablation: Ablation, ground: Path) -> None:
    """Which builds the model, without weights: the rules of a stage fit its parameters, a teacher's grid the image."""
    planned = set()
    for trial in make_trials(replace(ablation, seeds=(0,)), ground / "store", Recipe.of(ablation)):
        for stage in trial.stages:
            if (key := str(stage.settings)) not in planned:
                planned.add(key)
                assert plan_stage(stage, {str(Path(stage.folder).parent): ground}).flops_per_step > 0


def test_it_asks_a_question_and_has_enough_seeds(ablation: Ablation) -> None:
    assert ablation.question.endswith(("?", ")")) and len(ablation.seeds) >= 3
    assert all(metric.difference for metric in ablation.metrics)


def test_the_page_lists_it(ablation: Ablation) -> None:
    arms = [ablation.reference, *(arm.name for arm in ablation.arms if arm.name != ablation.reference)]
    row = f"| `{ablation.name}.yaml` | {ablation.question} | {', '.join(f'`{name}`' for name in arms)} |"
    assert row in (ABLATIONS[0].parents[2] / "docs" / "sweeps.md").read_text().splitlines()
