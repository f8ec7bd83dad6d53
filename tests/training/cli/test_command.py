"""The command line: typos at any depth, run folders, the chain of stages, what a run leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_eve
from lit_eve.errors import ConfigError
from lit_eve.training.callbacks import LineProgress, NonFiniteGuard, RunCheckpoint, TrainingMonitor
from lit_eve.training.cli import EveCLI, main
from lit_eve.training.cli.run_folder import OWN
from tests.training import world as micro

EXPERIMENTS = micro.ROOT / "experiments"


def fails(arguments: list[str], capsys) -> str:
    """The message with which the command line ends."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    return f"{stopped.value.code} {capsys.readouterr().err}"


# ---- typos


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("--modle.lr=1", "modle"),
        ("--model.learning_rate=1", "learning_rate"),
        ("--model.patch_embedding.widht=16", "widht"),
        ("--model.patch_embedding.name=eve_v11", "eve_v11"),
        ("--model.projector.dept=2", "dept"),
        ("--model.aligner.interval=2", "interval"),
        ("--model.geometry.image_sise=64", "image_sise"),
        ("--model.geometry.image_size=sixty", "geometry.image_size"),
        ("--model.stage=prelign", "prelign"),
        ("--model.stage.lr=1.0", "model.stage"),
        ("--model.stage={name: mine, lr: 1.0, rules: [{patern: .*}]}", "patern"),
        ("--model.stage={name: mine, lr: 1.0, rules: [{pattern: aligner.x}]}", "aligner.x"),
        ("--model.template=vicunia", "vicunia"),
        ("--data.trian=x", "trian"),
        ("--data.rows=0", "data.rows"),
        ("--trainer.max_stepss=3", "max_stepss"),
        ("--trainer.default_root_dir=", "trainer.default_root_dir: the path is empty"),
        ("--trainer.plugins=foo", "trainer.plugins: there is no class 'foo'"),
        ("--seed_everything=-1", "seed_everything must lie between 0 and 4294967295, got -1"),
        ("--model.stage={name: a, lr: 1, rules: [{pattern: '('}]}", "stage.rules: '(' is no regular expression"),
        ("--model.lr_floor=2", "model.lr_floor must lie between 0 and 1, got 2"),
        ("--model.max_new_tokens=0", "model.max_new_tokens must be at least 1, got 0"),
        ("--model.alignment_weight=-1", "model.alignment_weight must be at least 0, got -1"),
        ("--model.teacher_layer=99", "teacher_layer = 99 does not exist: the CLIP has 3 layers"),
        ("--checkpoint.every_n_steps=0", "checkpoint.every_n_steps must be at least 1, got 0"),
        ("--answers.num_samples=-1", "answers.num_samples must be at least 0, got -1"),
        ("--answers.max_new_tokens=0", "answers.max_new_tokens must be at least 1, got 0"),
        ("--imports=[", "--imports is no YAML"),
        ("--model_class=lightning.Trainer", "model_class: lightning.Trainer is no LightningModule"),
        ("--base=x.yaml", "base is a key of YAML files"),
        ("--config={base: x.yaml}", "base is a key of YAML files"),
        ("--trainer.strategy=ddq", "ddq"),
        ("--checkpoint.every=3", "checkpoint.every"),
        ("--answers.count=3", "answers.count"),
        ("--resume=maybe", "resume"),
    ],
)
def test_a_typo_fails_naming_the_key(world, tmp_path, capsys, override, key):
    message = fails([*micro.arguments(world, tmp_path / "run"), override], capsys)
    assert key in message
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.parametrize(
    "path", [("modle",), ("model", "lrr"), ("model", "geometry", "patch"), ("data", "init_args", "rowz"), ("trainer", "accel")]
)
def test_a_typo_in_a_file_fails_naming_the_key(world, tmp_path, capsys, path):
    config = yaml.safe_load((EXPERIMENTS / "nano/1_prealign.yaml").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = 1
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(config))
    arguments = micro.arguments(world, tmp_path / "run")
    arguments[2] = str(tmp_path / "typo.yaml")
    assert path[-1] in fails(arguments, capsys)


# ---- shipped files


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(EXPERIMENTS)))
def test_every_shipped_file_begins_with_its_question(file):
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    comment = " ".join(line for line in lines[:4] if line.startswith("#"))
    assert "?" in comment


# ---- three stages


@pytest.fixture(scope="module")
def chain(world, tmp_path_factory):
    """Run folders of the three stages, each starting from the one before."""
    root = tmp_path_factory.mktemp("chain")
    more = {"trainer.limit_train_batches": 6, "trainer.limit_val_batches": 2, "trainer.val_check_interval": 3}
    before = None
    for stage in ("1_prealign", "2_pretrain", "3_finetune"):
        start = {"model.init_from": before} if before else {}
        before = root / stage
        EveCLI(args=micro.arguments(world, before, stage, **more, **start))
    return root


def test_each_stage_goes_on_from_the_one_before(chain):
    states = [lit_eve.load(chain / stage, teacher=True)[0].state_dict() for stage in sorted(os.listdir(chain))]
    decoder = lit_eve.load(chain / "1_prealign")[0].language_model.state_dict()
    first, second, third = states
    assert first.keys() == second.keys() == third.keys()
    assert any(key.startswith("aligner.") for key in first)
    assert all(torch.equal(first[f"language_model.{key}"], value) for key, value in decoder.items())
    for earlier, later in ((first, second), (second, third)):
        assert [key for key in earlier if torch.equal(earlier[key], later[key])] == []
        # Six small steps from where the other stage ended, not from random weights.
        change = max((earlier[key] - later[key]).abs().max() for key in earlier)
        assert change < 6 * micro.LR * 1.1


def test_one_seed_moves_everything_that_is_not_fixed(world, chain, tmp_path):
    """In later stages nothing is drawn but the order of the data."""
    settings = {"model.init_from": chain / "1_prealign", "trainer.max_steps": 2, "trainer.limit_val_batches": 0}
    losses = {}
    for name, more in {
        "one": {"seed_everything": 1},
        "again": {"seed_everything": 1},
        "two": {"seed_everything": 2},
        "fixed": {"seed_everything": 2, "data.seed": 1},
    }.items():
        EveCLI(args=micro.arguments(world, tmp_path / name, "2_pretrain", **settings, **more))
        losses[name] = micro.scalars(tmp_path / name, "train/loss")
    assert losses["one"] == losses["again"] == losses["fixed"]
    assert losses["one"] != losses["two"]
    with pytest.raises(ConfigError, match="seed_everything: 1 -> 3"):
        EveCLI(args=micro.arguments(world, tmp_path / "one", "2_pretrain", **settings, **{"seed_everything": 3}))


def test_what_a_run_leaves_behind(chain):
    run = chain / "2_pretrain"
    assert (
        {path.name for path in run.iterdir()}
        == {
            *("checkpoints", "config.yaml", "model", "tensorboard"),
            *("metrics.csv", "metrics.json", "answers.jsonl", "word_maps"),
        }
        <= set(OWN)
    )  # what a run that starts over moves aside
    assert (run / "config.yaml").read_text().startswith(f"# lit_eve {lit_eve.__version__}, ")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_from"] == str(chain / "1_prealign")
    assert config["model"]["lr"] == micro.LR
    assert config["data"]["init_args"]["rows"] == 1
    files = {path.name for path in (run / "model").iterdir()}
    assert {"config.json", "model.safetensors", "aligner.safetensors", "processor_config.json", "tokenizer.json"} <= files


def test_what_tensorboard_shows(chain):
    events = EventAccumulator(str(chain / "3_finetune" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    losses = ("loss", "language_loss", "alignment_loss")
    expected = {f"{part}/{loss}" for part in ("train", "val") for loss in losses}
    expected |= {
        "train/gradient_norm",
        "train/token_accuracy",
        "val/token_accuracy",
        "lr/stage",
        "data/padding",
        "data/skipped",
    }
    expected |= {"speed/tokens_per_second", "speed/images_per_second"}
    assert expected <= set(tags["scalars"])
    assert {"answers/0/image_0", "answers/0/word_maps"} <= set(tags["images"])
    assert "answers/0/text_summary" in tags["tensors"]
    text = events.Tensors("answers/0/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "What is this?" in text and "**expected**" in text


def test_the_resolved_config_runs_again(chain, tmp_path):
    """The config of a run folder is a config file like any other."""
    arguments = ["fit", "--config", str(chain / "2_pretrain" / "config.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    EveCLI(args=arguments)
    ours, theirs = (micro.scalars(run, "train/loss") for run in (tmp_path, chain / "2_pretrain"))
    assert ours == theirs


def test_validate_test_and_predict(world, chain, tmp_path):
    stage = "3_finetune"
    fit = micro.arguments(world, tmp_path, stage, **{"model.init_from": chain / stage, "data.limit_samples": 5})
    rest = [a for a in fit[1:] if not a.startswith("--data.train=")]
    validated = EveCLI(args=["validate", *rest]).trainer.callback_metrics
    tested = EveCLI(args=["test", *rest]).trainer.callback_metrics
    assert validated["val/loss"] == tested["test/loss"] > 0
    EveCLI(args=["predict", *rest])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and all(line.keys() == {"id", "answer", "expected"} for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.jsonl"}


def test_two_ranks_train_like_one_that_accumulates(world, tmp_path):
    """Real shards, sliced by rank: the same losses step by step, the same validation, one export."""
    runs = {"one": {"trainer.accumulate_grad_batches": 2}, "two": {"trainer.devices": 2, "trainer.strategy": "ddp_fork"}}
    for name, settings in runs.items():
        EveCLI(args=micro.arguments(world, tmp_path / name, **settings, **{"trainer.val_check_interval": 1.0}))
    for tag in ("train/loss", "train/alignment_loss", "train/gradient_norm", "val/loss", "val/token_accuracy"):
        one, two = (micro.scalars(tmp_path / name, tag) for name in runs)
        assert one.keys() == two.keys() and len(one) > 0
        assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-4), tag
    one, two = (lit_eve.load(tmp_path / name)[0].state_dict() for name in runs)
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


# ---- run folders


def test_another_experiment_does_not_continue_a_run(world, chain, capsys):
    run, start = chain / "2_pretrain", {"model.init_from": chain / "1_prealign"}
    more = {"trainer.limit_train_batches": 6, "trainer.limit_val_batches": 2, "trainer.val_check_interval": 3}
    changed = micro.arguments(
        world, run, "2_pretrain", **start, **more, **{"model.optimizer.weight_decay": 0.1, "data.seed": 3}
    )
    message = fails(changed, capsys)
    assert "model.optimizer.weight_decay: None -> 0.1; data.seed: None -> 3" in message
    assert "--resume never" in message


def test_speed_and_newer_code_are_no_other_experiment(world, tmp_path):
    """Keys that came after the run began, and keys that decide nothing, do not keep it from going on."""
    more = {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 0}
    EveCLI(args=micro.arguments(world, tmp_path, **more))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del config["model"]["lr_floor"], config["data"]["init_args"]["shuffle_window"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cli = EveCLI(args=micro.arguments(world, tmp_path, **more, **{"data.max_bad_fraction": 0.5, "data.index_workers": 1}))
    assert cli._resumed == tmp_path / "checkpoints" / "step00000002.ckpt"
    with pytest.raises(ConfigError, match="model.patch_embedding.width: 16 -> 32"):
        EveCLI(args=[*micro.arguments(world, tmp_path, **more), "--model.patch_embedding.width=32"])


def test_resume_never_moves_the_old_run_aside(world, tmp_path):
    run = tmp_path / "run"
    more = {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 0}
    EveCLI(args=micro.arguments(world, run, **more))
    before = (run / "config.yaml").read_text()
    (run / "notes.txt").write_text("not the run's")
    EveCLI(args=[*micro.arguments(world, run, **more, **{"model.lr": 1e-4}), "--resume=never"])
    assert (tmp_path / "run.1" / "config.yaml").read_text() == before
    assert (tmp_path / "run.1" / "checkpoints" / "step00000002.ckpt").exists()
    assert (run / "notes.txt").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["lr"] == 1e-4


def test_every_run_has_its_guards(world, tmp_path):
    more = {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 0, "trainer.enable_progress_bar": True}
    callbacks = {type(c) for c in EveCLI(args=micro.arguments(world, tmp_path, **more)).trainer.callbacks}
    assert {NonFiniteGuard, TrainingMonitor, RunCheckpoint, LineProgress} <= callbacks


def test_progress_without_a_terminal(world, tmp_path, capsys):
    more = {"trainer.limit_train_batches": 4, "trainer.limit_val_batches": 1, "trainer.val_check_interval": 2}
    EveCLI(args=micro.arguments(world, tmp_path, **more, **{"trainer.enable_progress_bar": True}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "2", "3/4", "4/4", "4"]
    assert "train/loss" in lines[0] and "train/language_loss" in lines[0] and "val/language_loss" in lines[2]
    assert re.search(r"  0:00:\d\d left$", lines[0]) and "left" not in lines[4]


def test_a_missing_earlier_stage_is_one_sentence(world, tmp_path, capsys):
    arguments = micro.arguments(world, tmp_path / "run", "2_pretrain", **{"model.init_from": tmp_path / "nowhere"})
    message = fails(arguments, capsys)
    assert message.startswith("error: model.init_from: there is no") and "Traceback" not in message


def test_a_teacher_of_another_size_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="the longest side of an image has 6 tokens, no multiple of 8"):
        EveCLI(args=[*micro.arguments(world, tmp_path), "--model.geometry.image_size=48", "--model.geometry.cells=6"])


def test_help_is_quick_and_says_what_keys_mean(tmp_path):
    before = os.times()
    start = time.perf_counter()
    command = [sys.executable, str(micro.ROOT / "train.py"), "fit", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    shown = " ".join(shown.split())
    for text in ("--model.init_from", "the run folder of an earlier stage", "--checkpoint.every_n_steps", "--resume"):
        assert text in shown
    # On a quiet machine both are below 10 seconds; on a busy one the processor time still says what this costs.
    assert min(wall, cpu) < 15


@pytest.mark.parametrize("key", ["model.teacher", "model.decoder"])
def test_what_the_hub_does_not_give_is_one_sentence_before_data_is_read(world, tmp_path, key, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(world / "train", tmp_path / "new", ignore=shutil.ignore_patterns(".lit_eve"))
    overrides = {key: "openai/clip-vit-large-patch14-336", "data.train": tmp_path / "new"}
    message = fails(micro.arguments(world, tmp_path / "run", **overrides), capsys)
    assert re.search(rf"{key}: '?openai/clip-vit-large-patch14-336'? is no folder", message) and "cannot be reached" in message
    assert "download it where there is a network (hf download openai/clip-vit-large-patch14-336)" in message
    assert not (tmp_path / "new" / ".lit_eve").exists()


# ---- global batch, files laid over others


def test_the_global_batch_says_how_much_is_accumulated(world, tmp_path):
    cli = EveCLI(args=micro.arguments(world, tmp_path / "run", **{"data.rows": 2, "data.global_batch": 6}))
    assert cli.trainer.accumulate_grad_batches == 3
    rows = len(cli.datamodule.plan("train"))
    assert cli.trainer.global_step == -(-rows // 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.rows": 2, "data.global_batch": 7}, "7 rows cannot be shared out to 1 devices x data.rows = 2; 6 or 8 can"),
        ({"data.rows": 4, "data.global_batch": 2}, "4; 4 can"),
        ({"data.global_batch": 4, "trainer.accumulate_grad_batches": 3}, "contradicts data.global_batch = 4, which needs 4"),
        ({"data.global_batch": 0}, "data.global_batch must be at least 1"),
    ],
)
def test_a_global_batch_that_cannot_be(world, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        EveCLI(args=micro.arguments(world, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "config.yaml").exists()
