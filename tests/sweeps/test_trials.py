"""Arms x seeds become tasks: what is shared, what a changed file affects, where everything lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lit_eve.cli import main
from lit_eve.errors import ConfigError
from lit_eve.nano.steps import Journal
from lit_eve.sweeps.ablation import read_ablation
from lit_eve.sweeps.ledger import Ledger
from lit_eve.sweeps.recipe import Recipe, value_at
from lit_eve.sweeps.running import State
from lit_eve.sweeps.sweep import Sweep, only, with_grid
from lit_eve.sweeps.trials import EVALUATION, GROUND, Trial, link_trials, make_trials, tasks_of
from tests.nano.test_pipeline import write_config
from tests.sweeps.tiny import ARMS, write_ablation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the recipe; settings of its stages are parsed once."""
    folder = tmp_path_factory.mktemp("ablation")
    write_config(folder / "recipe")
    return folder


def trials_of(folder: Path, **content: object) -> dict[str, Trial]:
    ablation = read_ablation(write_ablation(folder, **content))
    return {trial.name: trial for trial in make_trials(ablation, folder / "out", Recipe.of(ablation))}


def options(trial: Trial, kind: str) -> dict[str, str]:
    """The options of a stage's command."""
    return dict(option[2:].split("=", 1) for option in trial.tasks[kind].command if option.startswith("--") and "=" in option)


def test_arms_share_their_ground_and_what_is_the_same(folder: Path) -> None:
    arms = ARMS | {"fast": {"2_pretrain": {"model.lr": 0.01}}}
    trials = trials_of(folder, arms=arms, seeds=2)
    assert list(trials) == [f"{arm}/seed_{seed}" for seed in (0, 1) for arm in arms]
    name = lambda arm, kind, seed=0: trials[f"{arm}/seed_{seed}"].tasks[kind].name  # noqa: E731
    assert len({name(arm, GROUND) for arm in arms}) == 1 and name("with", GROUND) != name("with", GROUND, 1)
    assert name("with", "1_prealign") == name("fast", "1_prealign") != name("without", "1_prealign")
    assert len({name(arm, "2_pretrain") for arm in arms}) == 3 == len({name(arm, EVALUATION) for arm in arms})
    folders = [task.folder for task in tasks_of(list(trials.values()))]
    assert len(set(folders)) == len(folders) == 2 * (1 + 2 + 3 + 3)


def test_a_stage_reads_and_writes_in_the_folders_of_its_trial(folder: Path) -> None:
    trial = trials_of(folder)["without/seed_0"]
    ground, first, second = (trial.tasks[kind].folder for kind in (GROUND, "1_prealign", "2_pretrain"))
    one, two = options(trial, "1_prealign"), options(trial, "2_pretrain")
    assert one["trainer.default_root_dir"] == str(first) and one["model.decoder"] == f"{ground}/language_model"
    assert (
        one["data.init_args.train"] == str(ground / "data" / "prealign")
        and one["model.teacher"] == one["model.aligner"] == "null"
    )
    assert two["trainer.default_root_dir"] == str(second) and two["model.init_from"] == str(first)
    assert "model.teacher" not in one or f"{ground}" not in one["model.teacher"]
    assert options(trials_of(folder)["with/seed_0"], "1_prealign")["model.teacher"] == f"{ground}/teacher"
    assert json.loads(trial.tasks[EVALUATION].command[-1]) == {
        "data": str(ground / "data"),
        "captioner": str(second),
        "answerer": None,
    }


def test_seeds(folder: Path) -> None:
    trials = trials_of(folder, arms=ARMS | {"again": {"seed_offset": 1000}}, seeds=[4])
    assert options(trials["with/seed_4"], "1_prealign")["seed_everything"] == "4"
    assert options(trials["again/seed_4"], "2_pretrain")["seed_everything"] == "1004"
    ground = json.loads(trials["again/seed_4"].tasks[GROUND].command[-1])
    assert [ground[name]["seed"] for name in ("world", "0_language_model", "0_teacher")] == [4, 4, 4]
    assert trials["again/seed_4"].tasks[GROUND].name == trials["with/seed_4"].tasks[GROUND].name


def test_a_stage_behind_a_skipped_one_takes_over_its_model(folder: Path) -> None:
    trials = trials_of(folder, arms=ARMS | {"at_once": {"1_prealign": "skip", "2_pretrain": {"model.lr": 0.01}}})
    trial = trials["at_once/seed_0"]
    assert list(trial.tasks) == [GROUND, "2_pretrain", EVALUATION]
    (stage,) = trial.stages
    recipe = yaml.safe_load((folder / "recipe" / "1_prealign.yaml").read_text())["model"]
    assert value_at(stage.settings, "model.init_from") is None and value_at(stage.settings, "model.stage") == "pretrain"
    for key in ("patch_embedding", "projector", "geometry", "template"):
        assert value_at(stage.settings, f"model.{key}") == recipe[key]
    assert options(trial, "2_pretrain")["model.decoder"] == f"{trial.tasks[GROUND].folder}/language_model"


def test_what_changes_all_stages_does_not_change_what_stands_before_them(folder: Path) -> None:
    """Language model and teacher have a learning rate too."""
    trials = trials_of(folder, arms=ARMS | {"fast": {"stages": {"model.lr": 0.1}}})
    fast, other = (trials[f"{arm}/seed_0"].tasks for arm in ("fast", "with"))
    assert fast[GROUND].name == other[GROUND].name and fast["1_prealign"].name != other["1_prealign"].name


def test_an_arm_may_change_its_world(folder: Path) -> None:
    trials = trials_of(folder, arms=ARMS | {"dark": {"world": {"scenes.background": [0, 40]}}})
    ground, other = (trials[f"{arm}/seed_0"].tasks[GROUND] for arm in ("dark", "with"))
    assert ground.settings["world"]["scenes"]["background"] == [0, 40] != other.settings["world"]["scenes"]["background"]
    assert ground.name != other.name and ground.waits_for == (trials["without/seed_0"].tasks[GROUND],)


def test_tasks_keep_their_names_where_other_arms_change(folder: Path) -> None:
    before = trials_of(folder)
    after = trials_of(
        folder,
        arms={
            **ARMS,
            "without": {"1_prealign": {"model.aligner": None, "model.teacher": None}},
            "x": {"stages": {"model.lr": 1.0}},
        },
    )
    assert before["with/seed_0"].tasks[EVALUATION].name == after["with/seed_0"].tasks[EVALUATION].name
    assert before["without/seed_0"].tasks["2_pretrain"].name != after["without/seed_0"].tasks["2_pretrain"].name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arms": ARMS | {"x": {"2_pretrain": {"model.lrr": 1}}}}, r"arm 'x', 2_pretrain: there is no setting model.lrr"),
        ({"arms": ARMS | {"x": {"2_pretrain": {"model.lr": "fast"}}}}, r"arm 'x', 2_pretrain: .*model.lr"),
        (
            {"arms": ARMS | {"x": {"2_pretrian": {"model.lr": 1}}}},
            r"arm 'x' changes '2_pretrian'; .* has 1_prealign, 2_pretrain, world",
        ),
        ({"arms": ARMS | {"x": {"1_prealign": "skip", "2_pretrain": "skip"}}}, "arm 'x' skips every stage"),
        ({"arms": ARMS | {"x": {}}}, "the arms 'with' and 'x' are the same; .* give one of them a seed_offset"),
        ({"stages": ["4_more"]}, "has no stage '4_more'; it has 1_prealign, 2_pretrain, 3_finetune"),
        ({"base": "nowhere"}, "there is no folder"),
        ({"scaled": "3_finetune", "equal": "flops"}, "scaled is '3_finetune'; the stages are 1_prealign, 2_pretrain"),
        ({"arms": ARMS | {"x": {"world": {"scenes.hue": 1}}}}, "arm 'x', world: .*hue"),
    ],
)
def test_bad_arms_are_named_before_anything_runs(folder: Path, content: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trials_of(folder, **content)


def test_grid_and_only(folder: Path) -> None:
    ablation = read_ablation(write_ablation(folder))
    grid = with_grid(ablation, ["2_pretrain.model.lr=1e-3,3e-3", "model.warmup=0,0.1"])
    assert [arm.name for arm in grid.arms] == [
        "without",
        *(f"2_pretrain.model.lr={lr},model.warmup={warmup}" for lr in ("0.001", "0.003") for warmup in ("0", "0.1")),
    ]
    assert grid.arms[1].of("2_pretrain") == {"model.teacher": None, "model.lr": 0.001, "model.warmup": 0}
    assert grid.arms[1].of("1_prealign")["model.aligner"] is None
    with pytest.raises(ConfigError, match="--grid takes KEY=VALUE,VALUE"):
        with_grid(ablation, ["model.lr"])
    assert [arm.name for arm in only(ablation, ["with"], 2).arms] == ["with", "without"]
    with pytest.raises(ConfigError, match="--only: there is no arm 'none'; the arms are with, without"):
        only(ablation, ["none"], None)


def test_an_arm_of_another_reference_brings_it_along(folder: Path) -> None:
    lr = {"2_pretrain": {"model.lr": 0.1}}
    ablation = read_ablation(
        write_ablation(folder, arms=ARMS | {"fast": lr, "faster": {"against": "fast", "stages": {"model.lr": 1.0}}})
    )
    assert [ablation.reference_of(name) for name in ("with", "faster")] == ["without", "fast"]
    assert [arm.name for arm in only(ablation, ["faster"], None).arms] == ["without", "fast", "faster"]
    chain = ARMS | {
        "a": lr,
        "b": {"against": "a", "stages": {"model.lr": 1.0}},
        "c": {"against": "b", "stages": {"model.lr": 2.0}},
    }
    kept = only(read_ablation(write_ablation(folder, arms=chain)), ["c"], None)
    assert [arm.name for arm in kept.arms] == ["without", "a", "b", "c"]


def test_sweeps_of_one_store_share_what_is_the_same(folder: Path, tmp_path: Path) -> None:
    def sweep(name: str, **content: object) -> Sweep:
        ablation = read_ablation(write_ablation(folder, **content))
        return Sweep(ablation, tmp_path / name, store=tmp_path / "store")

    first, second = (
        sweep("first"),
        sweep("second", arms={"recipe": {}, "fast": {"stages": {"model.lr": 0.1}}}, reference="recipe"),
    )
    for trial in first.trials:
        finish(trial)
    assert {trial.name: trial.is_done for trial in second.trials} == {"recipe/seed_0": True, "fast/seed_0": False}
    assert second.trials[0].tasks["2_pretrain"].folder.is_relative_to(tmp_path / "store" / "seed_0")


def finish(trial: Trial) -> None:
    for task in trial.tasks.values():
        task.folder.mkdir(parents=True, exist_ok=True)
        if not task.is_done:
            task.journal.run(task.step)


def test_a_ledger_of_another_version_says_what_changed_and_what_is_kept(folder: Path, tmp_path: Path) -> None:
    def sweep(keep: bool = False, **content: object) -> tuple[Ledger, list[Trial]]:
        made = Sweep(read_ablation(write_ablation(folder, **content)), tmp_path, keep)
        return made.ledger, made.trials

    ledger, trials = sweep()
    for trial in trials:
        finish(trial)
    ledger.write(trials, {})
    link_trials(tmp_path, trials)
    assert (tmp_path / "trials" / "with" / "seed_0" / "2_pretrain").samefile(trials[0].tasks["2_pretrain"].folder)
    sweep(arms=ARMS | {"new": {"stages": {"model.lr": 0.1}}}, seeds=3)  # more of the same is no other version
    changed = ARMS | {"with": {"2_pretrain": {"model.lr": 0.5}}}
    message = (
        r"another version of .*question.yaml \(arms.with.changes.2_pretrain: null, now .*0.5.*\). --keep .* of 2 trials, 1 are"
    )
    with pytest.raises(ConfigError, match=message):
        sweep(arms=changed)
    ledger, trials = sweep(keep=True, arms=changed)
    assert [trial.is_done for trial in trials] == [False, True]
    ledger.write(trials, {trials[0].tasks["2_pretrain"].name: "it broke"})
    states = json.loads((tmp_path / "ledger.json").read_text())["trials"]
    assert states["with/seed_0"]["state"] == "failed" and states["with/seed_0"]["why"] == "it broke"
    assert states["without/seed_0"]["state"] == "finished"
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(ConfigError, match="is no ledger"):
        Ledger(tmp_path)


def test_steps_that_make_arms_equal_may_take_more_than_the_recipes_epoch(folder: Path) -> None:
    ablation = read_ablation(write_ablation(folder))
    stages = Recipe.of(ablation).arm_stages(ablation.arm("with"), {"2_pretrain": 99})
    assert [value_at(stage.settings, "trainer.max_steps") for stage in stages] == [-1, 99]
    assert stages[1].changes["trainer.max_epochs"] is None


def test_steps_that_make_arms_equal_are_those_of_one_version(folder: Path, tmp_path: Path) -> None:
    def sweep(keep: bool = False, **content: object) -> Sweep:
        return Sweep(read_ablation(write_ablation(folder, equal="flops", **content)), tmp_path, keep)

    first, scaled = sweep(), {"with": {"2_pretrain": 7}}
    first.ledger.write(first.trials, {}, scaled)
    more = sweep(arms=ARMS | {"new": {"stages": {"model.lr": 0.1}}})
    assert more.ledger.scaled == scaled  # "new" is still to be made equal
    assert options(more.trials[0], "2_pretrain")["trainer.max_steps"] == "7"
    changed = sweep(keep=True, arms=ARMS | {"with": {"2_pretrain": {"model.lr": 0.5}}})
    assert changed.ledger.scaled == {} and "trainer.max_steps" not in options(changed.trials[0], "2_pretrain")


def test_a_search_does_not_go_on_with_samples_that_were_stopped(folder: Path, tmp_path: Path) -> None:
    from lit_eve.sweeps.search import Search, check_search

    space = {"2_pretrain.model.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    ablation = read_ablation(write_ablation(folder, search=space))
    search = Search(Sweep(ablation, tmp_path), 3)
    names = [trial.name for _ in range(2) for trial in search.more(State([]))]
    assert names == ["sample_0000/seed_0", "sample_0001/seed_0"]
    search._end(names[0], None, "PRUNED")
    again = Search(Sweep(ablation, tmp_path), 3)
    assert [trial.name for trial in again.begun] == list(again.open) == names[1:]
    with pytest.raises(ConfigError, match="samples are not made equal, and equal is 'flops'"):
        check_search(read_ablation(write_ablation(folder, search=space, equal="flops")))


def test_a_task_is_undone_where_its_folder_is_gone(folder: Path, tmp_path: Path) -> None:
    ablation = read_ablation(write_ablation(folder))
    trial = make_trials(ablation, tmp_path, Recipe.of(ablation))[0]
    finish(trial)
    assert trial.is_done
    trial.tasks["2_pretrain"].folder.rmdir()
    assert not trial.is_done and isinstance(trial.tasks["2_pretrain"].journal, Journal)


def test_what_a_miniature_costs_is_known_with_its_ground(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_ablation(folder, equal="flops")
    assert main(["sweep", str(path), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "without 1_prealign – – – 0 of 1 2_pretrain" in printed and "2 trials –: known once the miniature's world" in printed
    assert "the steps of the last stage are chosen so that all arms have the same training FLOPs" in printed
    assert not (tmp_path / "out").exists()
    assert main(["sweep", str(path), "--output", str(tmp_path / "out"), "--store", str(tmp_path / "out")]) == 2
    assert "--store and --output are both" in capsys.readouterr().err
