"""The ablations of experiments/ablations: every arm is one that could be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_eve.nano.seeds import SEED_KEYS
from lit_eve.sweeps.ablation import Ablation, read_ablation
from lit_eve.sweeps.recipe import Recipe
from lit_eve.sweeps.trials import GROUND, make_trials

ABLATIONS = sorted((Path(__file__).parents[2] / "experiments" / "ablations").glob("*.yaml"))


@pytest.fixture(params=ABLATIONS, ids=lambda path: path.stem)
def ablation(request: pytest.FixtureRequest) -> Ablation:
    return read_ablation(request.param)


def test_every_arm_is_read(ablation: Ablation, tmp_path: Path) -> None:
    """As train.py would read it, which test_trials.py shows of arms that it refuses."""
    trials = make_trials(ablation, tmp_path, Recipe.of(ablation))
    assert len(trials) == len(ablation.arms) * len(ablation.seeds)
    for trial in trials[: len(ablation.arms)]:
        assert set(trial.tasks[GROUND].settings) == {*SEED_KEYS, "with_teacher"}


def test_it_asks_a_question_and_has_enough_seeds(ablation: Ablation) -> None:
    assert ablation.question.endswith(("?", ")")) and len(ablation.seeds) >= 3
    assert all(metric.difference for metric in ablation.metrics)


def test_the_page_lists_it(ablation: Ablation) -> None:
    arms = [ablation.reference, *(arm.name for arm in ablation.arms if arm.name != ablation.reference)]
    row = f"| `{ablation.name}.yaml` | {ablation.question} | {', '.join(f'`{name}`' for name in arms)} |"
    assert row in (ABLATIONS[0].parents[2] / "docs" / "sweeps.md").read_text().splitlines()
