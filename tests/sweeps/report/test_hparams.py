"""The event files, read back as TensorBoard reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_eve.errors import ConfigError
from lit_eve.nano.figures import read_curves
from lit_eve.sweeps.ablation import Arm
from lit_eve.sweeps.report.hparams import write_hparams
from tests.sweeps.report.made_up import ablation, trial, trials


def hyperparameters(run: Path) -> tuple[dict[str, object], set[str]]:
    """Those of a run, and the names of its results."""
    contents = EventAccumulator(str(run)).Reload().PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
    experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}, {
        info.name.tag for info in experiment.metric_infos
    }


def test_a_run_per_trial(tmp_path):
    changes = {"stages": {"model.lr": 0.001, "data.shuffle": True}, "2_pretrain": {"model.teacher": None, "data.mix": [1, 2]}}
    made = replace(ablation("without", "with"), arms=(Arm("without", changes, ("1_prealign",)), Arm("with")))
    done = trials({"without": 0.0, "with": -0.05}, 2)
    root = write_hparams(tmp_path, made, done)
    assert {run.name for run in root.iterdir()} == {f"{one.arm}_seed_{one.seed}" for one in done}
    assert not [path for path in root.rglob("*") if path.is_dir() and path.parent != root]

    settings, results = hyperparameters(root / "without_seed_1")
    assert settings == {
        **{"arm": "without", "seed": 1, "stages/model.lr": 0.001, "stages/data.shuffle": True},
        **{"2_pretrain/model.teacher": "null", "2_pretrain/data.mix": "[1, 2]", "1_prealign": "skip"},
    }
    assert results == {"result/looks_loss", "result/question_accuracy"}
    assert hyperparameters(root / "with_seed_0")[0] == {"arm": "with", "seed": 0}

    scalars, one = read_curves(root / "without_seed_1"), next(one for one in done if one.name == "without/seed_1")
    for name, curve in one.curves.items():
        assert list(zip(*map(list, scalars[name]), strict=True)) == [(step, pytest.approx(value)) for step, value in curve]
    for name, value in one.metrics.items():
        assert [list(part) for part in scalars[f"result/{name}"]] == [[1200], [pytest.approx(value)]]


def test_written_again_nothing_is_there_twice(tmp_path):
    made = ablation("without", "with")
    write_hparams(tmp_path, made, [trial("without", 0, looks_loss=0.5), trial("with", 0, looks_loss=0.5)])
    root = write_hparams(tmp_path, made, [trial("without", 0, looks_loss=0.25)])
    assert [run.name for run in root.iterdir()] == ["without_seed_0"]
    assert read_curves(root / "without_seed_0")["result/looks_loss"][1].tolist() == [0.25]


def test_a_trial_of_no_arm_is_refused_and_nothing_is_deleted(tmp_path):
    made = ablation("without", "with")
    root = write_hparams(tmp_path, made, [trial("without", 0, looks_loss=0.5)])
    with pytest.raises(ConfigError, match="sample_0001/seed_0 is a trial of no arm of the file"):
        write_hparams(tmp_path, made, [trial("sample_0001", 0, looks_loss=0.5)])
    assert [run.name for run in root.iterdir()] == ["without_seed_0"]


def test_a_metric_with_the_name_of_a_curve_adds_no_point_to_it(tmp_path):
    one = replace(
        trial("with", 0, curves={"2_pretrain/val/loss": [(10, 2.0), (20, 1.0)]}), metrics={"2_pretrain/val/loss": 1.0}
    )
    root = write_hparams(tmp_path, ablation("without", "with"), [one])
    assert read_curves(root / "with_seed_0")["2_pretrain/val/loss"][0].tolist() == [10, 20]
