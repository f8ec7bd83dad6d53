"""Whole sweeps with real trainings, placed by Ray: killed, broken, on two machines, as a search."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import lit_eve
from lit_eve.nano.pipeline import read_stage, train_stage
from lit_eve.sweeps.ablation import read_ablation
from lit_eve.sweeps.recipe import Recipe
from lit_eve.sweeps.search import FILE
from lit_eve.sweeps.trials import GROUND, Trial, make_trials
from tests.nano.test_pipeline import write_config
from tests.sweeps.tiny import ARMS, write_ablation

pytestmark = pytest.mark.slow


def command(path: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "lit_eve.cli", "sweep", str(path), "--output", str(output), *options]


def sweep(path: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, output, *options), capture_output=True, text=True, timeout=900)


def wait_for(condition: Any, process: subprocess.Popen, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def trials_of(path: Path, output: Path) -> dict[str, Trial]:
    ablation = read_ablation(path)
    return {trial.name: trial for trial in make_trials(ablation, output.parent / "store", Recipe.of(ablation))}


def values(output: Path, metric: str) -> dict[str, float]:
    with (output / "results.csv").open() as file:
        return {row["trial"]: float(row["value"]) for row in csv.DictReader(file) if row["metric"] == metric}


def test_a_killed_sweep_goes_on_and_comes_to_what_train_py_comes_to(tmp_path: Path) -> None:
    arms = ARMS | {"broken": {"2_pretrain": {"data.init_args.train": "nowhere/at/all"}}}
    path, output = write_ablation(tmp_path, arms=arms), tmp_path / "out"
    trials = trials_of(path, output)
    process = subprocess.Popen(command(path, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = trials["with/seed_0"].tasks["1_prealign"]
    wait_for(lambda: (first.folder / "metrics.csv").exists(), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ground = trials["with/seed_0"].tasks[GROUND]
    made = {file: file.stat().st_mtime_ns for file in ground.folder.rglob("*.tar")}
    assert ground.is_done and made and not trials["with/seed_0"].is_done

    done = sweep(path, output)
    assert done.returncode == 2 and "1 trials failed" in done.stderr, done.stderr
    assert "broken/seed_0 failed" in done.stdout and "nowhere/at/all" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in ground.folder.rglob("*.tar")} == made
    states = json.loads((output / "ledger.json").read_text())["trials"]
    assert {name: trial["state"] for name, trial in states.items()} == {
        "with/seed_0": "finished",
        "without/seed_0": "finished",
        "broken/seed_0": "failed",
    }
    report = (output / "report.md").read_text()
    assert "broken/seed_0" in report and "nowhere/at/all" in report and (output / "figures/differences.png").exists()
    assert set(values(output, "caption_loss")) == {"with/seed_0", "without/seed_0"}

    # By hand: the same stages, one after the other, in a folder of their own.
    hand = tmp_path / "hand"
    hand.mkdir()
    for name in ("data", "language_model", "teacher"):
        (hand / name).symlink_to(ground.folder / name)
    for name in ("1_prealign", "2_pretrain"):
        train_stage(name, read_stage(tmp_path / "recipe" / f"{name}.yaml", hand), hand)
    record = json.loads((hand / "2_pretrain" / "metrics.json").read_text())["metrics"]
    assert values(output, "2_pretrain/val/language_loss")["with/seed_0"] == record["val/language_loss"]
    with (output / "results.csv").open() as file:
        counted = {row["arm"]: int(row["parameters"]) for row in csv.DictReader(file)}
    model = lit_eve.load(hand / "2_pretrain")[0]
    assert counted["with"] == counted["without"] == sum(parameter.numel() for parameter in model.parameters())
    again = sweep(path, output, "--results")
    assert again.returncode == 0 and "2 of 3 trials are finished" in " ".join(again.stdout.split())


def test_a_trial_whose_machine_is_lost_goes_on_elsewhere(tmp_path: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    path, output = write_ablation(tmp_path), tmp_path / "out"
    trials = trials_of(path, output)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = subprocess.Popen(command(path, output, "--address", cluster.address), stderr=subprocess.PIPE, text=True)
        stage = trials["with/seed_0"].tasks["1_prealign"]
        wait_for(lambda: (stage.folder / "metrics.csv").exists(), process)
        cluster.add_node(num_cpus=1)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(900) == 0, process.stderr.read()
    finally:
        cluster.shutdown()
    assert all(trial.is_done for trial in trials.values())
    assert set(values(output, "caption_loss")) == {"with/seed_0", "without/seed_0"}


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    space = {"2_pretrain.model.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    path, output = write_ablation(tmp_path, search=space), tmp_path / "out"
    process = subprocess.Popen(command(path, output, "--sample", "3"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = output / "ledger.json"
    wait_for(lambda: ledger.exists() and '"sample_0000/seed_0": {\n      "state": "finished"' in ledger.read_text(), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = sweep(path, output, "--sample", "3")
    assert done.returncode == 0, done.stderr
    names = {"without/seed_0", *(f"sample_{number:04d}/seed_0" for number in range(3))}
    states = json.loads(ledger.read_text())["trials"]
    assert set(states) == names and {trial["state"] for trial in states.values()} <= {"finished", "unfinished"}
    assert len(set(values(output, "2_pretrain/val/language_loss").values())) >= 3


def test_a_search_stops_samples_that_are_worse_than_the_median(tmp_path: Path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    write_config(tmp_path / "recipe", **{"2_pretrain": {"trainer.max_steps": 150, "trainer.val_check_interval": 10}})
    space = {"2_pretrain.model.lr": {"low": 1e-6, "high": 1e-2, "log": True}}
    path, output = write_ablation(tmp_path, search=space), tmp_path / "out"
    done = sweep(path, output, "--sample", "7")
    assert done.returncode == 0, done.stderr

    study = optuna.load_study(
        study_name="question", storage=optuna.storages.JournalStorage(JournalFileBackend(str(output / FILE)))
    )
    by_state = {name: [trial for trial in study.trials if trial.state.name == name] for name in ("COMPLETE", "PRUNED")}
    assert len(by_state["PRUNED"]) + len(by_state["COMPLETE"]) == 7 and len(by_state["COMPLETE"]) >= 4
    validations = {trial.number: max(trial.intermediate_values) for trial in by_state["PRUNED"]}
    assert min(validations.values()) < 15, "none was stopped early"
    for pruned in by_state["PRUNED"]:
        assert f"sample_{pruned.number:04d}/seed_0 pruned" in done.stdout
        last = validations[pruned.number]
        assert pruned.intermediate_values[last] > min(trial.intermediate_values[last] for trial in by_state["COMPLETE"])


def test_arms_of_equal_flops(tmp_path: Path) -> None:
    arms = {"with": {}, "at_once": {"1_prealign": "skip"}}
    path, output = write_ablation(tmp_path, arms=arms, reference="with", equal="flops"), tmp_path / "out"
    done = sweep(path, output)
    assert done.returncode == 0, done.stderr
    with (output / "results.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    flops = {arm: float(row["flops"]) for arm, row in rows.items()}
    steps = {arm: int(row["steps"]) for arm, row in rows.items()}
    assert flops["at_once"] == pytest.approx(flops["with"], rel=0.1) and steps["at_once"] != steps["with"]


def test_a_rule_that_fits_no_parameter_is_refused_before_a_stage_is_trained(tmp_path: Path) -> None:
    rules = {"name": "mine", "lr": 1e-3, "rules": [{"pattern": "pach_embedding"}]}
    arms = {"with": {}, "typo": {"2_pretrain": {"model.stage": rules}}}
    path, output = write_ablation(tmp_path, arms=arms, reference="with"), tmp_path / "out"
    for ground in ("is made first", "is there"):
        refused = sweep(path, output)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, ground
        assert "arm 'typo': 2_pretrain: stage 'mine': the pattern 'pach_embedding' fits no parameter" in refused.stderr
        trials = trials_of(path, output).values()
        assert all(
            trial.tasks[GROUND].is_done and not any(task.folder.exists() for task in trial.stage_tasks) for trial in trials
        )
        states = json.loads((output / "ledger.json").read_text())["trials"]
        assert states["typo/seed_0"]["state"] == states["with/seed_0"]["state"] == "unfinished"


def test_arms_of_equal_seconds(tmp_path: Path) -> None:
    arms = {"with": {}, "at_once": {"1_prealign": "skip"}}
    path, output = write_ablation(tmp_path, arms=arms, reference="with", equal="seconds"), tmp_path / "out"
    done = sweep(path, output)
    assert done.returncode == 0, done.stderr
    scaled = json.loads((output / "ledger.json").read_text())["scaled"]["at_once"]["2_pretrain"]
    with (output / "results.csv").open() as file:
        steps = {row["arm"]: int(row["steps"]) for row in csv.DictReader(file)}
    last = trials_of(path, output)["with/seed_0"].tasks["2_pretrain"].folder
    of_stage_2 = json.loads((last / "metrics.json").read_text())["step"]
    assert steps["at_once"] == scaled > of_stage_2  # what stage 1 took is spent on stage 2
    again = sweep(path, output)
    assert again.returncode == 0 and json.loads((output / "ledger.json").read_text())["scaled"]["at_once"] == {
        "2_pretrain": scaled
    }


def test_what_cannot_be_placed_is_said_at_once(tmp_path: Path) -> None:
    done = sweep(write_ablation(tmp_path, resources={"cores": 4000}), tmp_path / "out")
    assert done.returncode == 2
    assert "a trial asks for 4000 cores, 0 GPUs and 0 GB of memory, and no machine has that much" in " ".join(
        done.stderr.split()
    )
    done = sweep(write_ablation(tmp_path), tmp_path / "out", "--address", "127.0.0.1:1")
    assert done.returncode == 2 and "--address 127.0.0.1:1: " in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_sweep_of_7b_is_planned(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = root / "experiments" / "ablations" / "stage_1.yaml"
    base = root / "experiments" / "eve_7b"
    done = subprocess.run(
        [*command(path, tmp_path, "--base", str(base), "--dry-run", "--seeds", "2")], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert "4 trials" in done.stdout and "GPU-days in all" in done.stdout and not (tmp_path / "ledger.json").exists()
