"""Benchmarks as validation loaders of a training, on one process and on two that share a sharded model."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lit_eve.cli import main
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation import BenchmarkData, callbacks
from lit_eve.evaluation.callbacks import ScoreAnswers, counted
from lit_eve.evaluation.tasks import find_tasks
from lit_eve.nano.world.benchmarks import write_benchmarks
from lit_eve.training import LitEve
from lit_eve.training.cli import EveCLI
from tests.evaluation.micro import PARTS, make_model, make_pope
from tests.training import world as micro
from tests.training.world import scalars
from tests.two_processes import in_two_processes

TAGS = ("benchmarks/pope", "pope/f1/random", "pope/accuracy/popular", "pope/yes_ratio/popular", "pope/answered", "val/loss")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    micro.make_shards(folder / "train", 24)
    micro.make_shards(folder / "validation", 4, seed=1)
    make_pope(folder / "data", 3)
    make_model(folder / "model", seed=1)  # which says no now and then
    return folder


def arguments(given: Path, run: Path, **overrides: object) -> list[str]:
    settings = {
        "model.init_from": given / "model",
        "model.teacher": "null",
        "data.benchmarks": "lit_eve.evaluation.BenchmarkData",
        "data.benchmarks.path": given / "data",
        "data.benchmarks.benchmarks": "pope",
        "data.benchmarks.batch_size": 2,
        "data.benchmarks.max_new_tokens": 12,
        "data.benchmarks.num_workers": 0,
        "data.num_workers": 0,
        "data.global_batch": 2,
        "model.lr": 1e-3,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 1,
        "answers.num_samples": 0,
        **overrides,
    }
    return micro.arguments(given, run, "3_finetune", **settings)


def scores(run: Path) -> dict[str, float]:
    """As TensorBoard shows them after the second step."""
    return {tag: scalars(run, tag)[2] for tag in TAGS}


@pytest.fixture(scope="module")
def trained(given) -> Path:
    EveCLI(args=arguments(given, given / "one"))
    return given / "one"


def test_scores_of_a_validation_are_those_of_an_evaluation_of_that_model(given, trained):
    command = ["evaluate", "--model", str(trained), "--data", str(given / "data"), "--benchmarks", "pope"]
    more = ["--output", str(given / "evaluation"), "--max-new-tokens", "12", "--accelerator", "cpu", "--devices", "1"]
    assert main([*command, *more]) == 0
    (result,) = json.loads((given / "evaluation/results.json").read_text())["results"]
    logged = {tag: scalars(trained, tag)[2] for tag in (*TAGS, *(f"pope/yes_ratio/{part}" for part in PARTS))}
    assert 0 < sum(logged[f"pope/yes_ratio/{part}"] for part in PARTS) < 300
    assert logged["benchmarks/pope"] != scalars(trained, "benchmarks/pope")[1]  # of the validation before
    assert logged["benchmarks/pope"] == pytest.approx(result["score"], abs=1e-4)
    for tag in ("f1/random", "accuracy/popular", "yes_ratio/popular"):
        assert logged[f"pope/{tag}"] == pytest.approx(result["scores"][tag], abs=1e-4)


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_validate_like_one(given, trained, damaged, strategy):
    run = given / strategy
    settings = {"trainer.strategy": strategy, "trainer.devices": 2}
    damages = {"data.benchmarks.path": damaged, "data.benchmarks.allow_partial": "true"}
    commands = arguments(given, run, **settings), arguments(given, run / "partial", **settings, **damages)
    said = in_two_processes(lambda: [EveCLI(args=command) for command in commands])
    assert scores(run) == pytest.approx(scores(trained), rel=1e-4)
    assert scores(run / "partial")["pope/answered"] == 5 and scores(run)["pope/answered"] == 9
    assert said.count("POPE: 5 of 9 questions; coco_pope") == 1  # told by one rank, of all
    assert said.count("image file is truncated") == 4
    assert "It is recommended to use `self.log" not in said


def damage(folder: Path, *, count: int) -> None:
    """Cut off the end of the first so many images of a folder."""
    for image in sorted(folder.glob("*.jpg"))[:count]:
        image.write_bytes(image.read_bytes()[: image.stat().st_size - 100])


@pytest.fixture(scope="module")
def damaged(given) -> Path:
    damage(make_pope(given / "damaged", 3) / "pope/val2014", count=4)  # the images of adversarial, and one of popular
    return given / "damaged"


@pytest.fixture
def right_answers(monkeypatch) -> None:
    """A model that knows everything about GQA."""

    def known(self, batch, answers):
        questions = self.tasks[batch.source].questions
        return {index: questions[index].reference.answer for index in counted(batch, answers)}

    update = ScoreAnswers.on_validation_batch_end

    def patched(self, trainer, pl_module, outputs, batch, *rest):
        monkeypatch.setattr(callbacks, "counted", partial(known, self))
        update(self, trainer, pl_module, outputs, batch, *rest)

    monkeypatch.setattr(ScoreAnswers, "on_validation_batch_end", patched)


def test_questions_that_were_not_asked_are_neither_wrong_nor_passed_over(given, tmp_path, right_answers):
    write_benchmarks(tmp_path, questions=10)
    damage(tmp_path / "gqa/images", count=2)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "use_distributed_sampler"), False)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", devices=1, **quiet)
    module = LitEve(init_from=str(given / "model"))
    settings = {"benchmarks": ["gqa"], "max_new_tokens": 2, "num_workers": 0}
    with pytest.raises(LitEveError, match="GQA: testdev_balanced_questions.json, q.*; allow_partial of the benchmarks") as told:
        trainer.validate(module, BenchmarkData(str(tmp_path), **settings), verbose=False)
    assert "image file is truncated" in str(told.value)  # which shows when it is read
    with pytest.warns(UserWarning, match="GQA: . of 10 questions; testdev_balanced_questions.json, question "):
        trainer.validate(module, BenchmarkData(str(tmp_path), **settings, allow_partial=True), verbose=False)
    assert 0 < trainer.callback_metrics["gqa/answered"] < 10
    assert trainer.callback_metrics["benchmarks/gqa"] == 100
    damage(tmp_path / "gqa/images", count=10)
    with pytest.warns(UserWarning, match="GQA: 0 of 10 questions; "):  # nothing that a training should end for
        trainer.validate(module, BenchmarkData(str(tmp_path), **settings, allow_partial=True), verbose=False)
    assert trainer.callback_metrics.keys() == {"gqa/answered"}


def test_an_error_in_a_training_leaves_the_trainer_as_it_was(given, tmp_path):
    cli = EveCLI(args=arguments(given, tmp_path / "run")[1:], run=False)
    cli.datamodule.benchmarks.path = str(tmp_path / "data")
    damage(make_pope(tmp_path / "data", 3) / "pope/val2014", count=1)
    for _ in range(2):
        with pytest.raises(LitEveError, match="image file is truncated"):
            cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
        assert not any(isinstance(callback, ScoreAnswers) for callback in cli.trainer.callbacks)


def test_a_training_needs_nothing_for_files_that_it_does_not_write(tmp_path, monkeypatch):
    write_benchmarks(tmp_path, questions=10)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert len(find_tasks("mmbench", tmp_path, while_training=True)) == 1


def test_a_judge_that_would_not_be_asked_is_told(given, tmp_path):
    write_benchmarks(tmp_path / "data", questions=10)
    settings = {"data.benchmarks.path": tmp_path / "data", "data.benchmarks.benchmarks": "mmbench"}
    settings |= {"data.benchmarks.judge.url": "http://localhost:1/v1", "trainer.fast_dev_run": True}
    with pytest.warns(UserWarning, match="judge of the benchmarks: a validation asks none, and MMBench is scored by its rules"):
        EveCLI(args=arguments(given, tmp_path / "run", **settings))


def test_benchmarks_alone_can_be_validated_on(given, tmp_path):
    command = arguments(given, tmp_path / "run", **{"data.validation": "null", "answers.num_samples": 1})
    EveCLI(args=command)
    assert 0 < scalars(tmp_path / "run", "benchmarks/pope")[2] <= 100
    EveCLI(args=["validate", *(text for text in command[1:] if "--checkpoint" not in text)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.benchmarks.benchmarks": "vqav2:test"}, "only a server knows the answers to vqav2:test.*take vqav2:val"),
        ({"data.benchmarks.benchmarks": "mmvet"}, "mmvet needs a judge"),
        ({"data.benchmarks.limit": 0}, "limit of the benchmarks must be at least 1, got 0"),
        ({"trainer.limit_val_batches": 0.5}, "limit_val_batches=0.5 would cut off questions of the benchmarks"),
    ],
)
def test_what_cannot_be_validated_on(given, tmp_path, settings, message):
    write_benchmarks(tmp_path / "data", questions=10)
    settings = {"data.benchmarks.path": tmp_path / "data", **settings}
    with pytest.raises(ConfigError, match=message):
        EveCLI(args=arguments(given, tmp_path / "run", **settings))
