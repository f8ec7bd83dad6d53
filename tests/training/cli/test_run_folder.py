"""A run folder is found again however its path is written, and what does not belong to it is refused."""

from __future__ import annotations

import re
from fractions import Fraction
from importlib.util import find_spec

import pytest
import torch

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.training.cli import EveCLI, main
from lit_eve.training.cli.run_folder import refuse_other_settings
from tests.training import world as micro

SHORT = {"trainer.limit_val_batches": 0, "model.teacher": "null", "checkpoint.every_n_steps": 2}


def arguments(world, run, **more):
    settings = [f"--{key}={value}" for key, value in ({**SHORT, **more}).items()]
    rest = [a for a in micro.arguments(world, run) if not a.startswith(("--model.teacher", "--model.aligner"))]
    return [*rest, "--model.aligner=null", *settings]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and a working directory, both empty."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("written", "again", "place"),
    [
        ("~/run", "~/run/", "home/run"),
        ("run [v2]", "./run [v2]", "here/run [v2]"),
        ("../größe 1", "link/../größe 1", "größe 1"),
    ],
)
def test_a_run_goes_on_however_its_folder_is_written(world, home, written, again, place):
    (home / "far").mkdir()
    (home / "here" / "link").symlink_to(home / "far")
    EveCLI(args=arguments(world, written, **{"trainer.max_steps": 2}))
    assert {path.name for path in (home / place).iterdir()} >= {"checkpoints", "config.yaml", "tensorboard", "model"}
    cli = EveCLI(args=arguments(world, again, **{"trainer.max_steps": 4}))
    assert cli._resumed.resolve() == home / place / "checkpoints" / "step00000002.ckpt"
    assert len(micro.scalars(home / place, "train/loss")) == 4
    assert [path.name for path in (home / place / "checkpoints").iterdir()] == ["step00000004.ckpt"]
    assert not list((home / "here").glob("~*"))


def test_every_path_may_be_written_with_a_home(world, home):
    for name in ("decoder", "train", "validation", "teacher"):
        (home / "home" / name).symlink_to(world / name)
    more = {"model.decoder": "~/decoder/", "model.teacher": "~/teacher", "data.train": "~/train/shard-*.tar"}
    paths = {"data.validation": "~/validation", "trainer.max_steps": 1, "trainer.limit_val_batches": 1}
    cli = EveCLI(args=micro.arguments(world, "~/run", **more, **paths))
    assert cli.trainer.global_step == 1
    second = {"model.init_from": "~/run", "trainer.max_steps": 1}
    assert EveCLI(args=micro.arguments(world, "~/second", "2_pretrain", **second)).trainer.global_step == 1
    written_otherwise = second | {"model.init_from": home / "home" / "run", "trainer.max_steps": 2}
    assert EveCLI(args=micro.arguments(world, "~/second", "2_pretrain", **written_otherwise)).trainer.global_step == 2


def test_a_typo_in_a_used_folder_is_told_as_one_and_moves_nothing(world, tmp_path):
    run = tmp_path / "run"
    EveCLI(args=arguments(world, run, **{"trainer.max_steps": 1}))
    for more in ([], ["--resume=never"]):
        with pytest.raises(ConfigError, match="^model.patch_embedding: .*no argument 'widht'"):
            EveCLI(args=[*arguments(world, run), "--model.patch_embedding.widht=16", *more])
    with pytest.raises(ConfigError, match="^trainer: "):
        EveCLI(args=[*arguments(world, run), "--trainer.accelerator=tpuu", "--resume=never"])
    assert (run / "config.yaml").exists() and not (tmp_path / "run.1").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.ckpt", "ckpt_path: there is no 'nothing.ckpt'"),
        ("last", "ckpt_path: there is no checkpoint in .*run yet"),
        ("best", "ckpt_path: 'best' is not kept here"),
        ("half.ckpt", "ckpt_path: 'half.ckpt' is no checkpoint, or only part of one"),
        (".", "ckpt_path: '.' holds no whole checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_there(world, home, given, message):
    (home / "here" / "half.ckpt").write_bytes(b"PK" + bytes(99))
    for subcommand in ("fit", "validate"):
        rest = [a for a in arguments(world, "run")[1:] if subcommand == "fit" or not a.startswith("--checkpoint")]
        with pytest.raises(ConfigError, match=f"^{message}"):
            EveCLI(args=[subcommand, *rest, f"--ckpt_path={given}"])
    assert not (home / "here" / "run").exists()


def test_a_folder_that_cannot_be_one(world, home):
    (home / "here" / "file").write_text("")
    for given, message in {
        "file": "is no folder$",
        "file/run": "is no folder, so that file/run",
        "s3://b/run": "no folder of this",
    }.items():
        with pytest.raises(ConfigError, match=f"^trainer.default_root_dir: .*{message}"):
            EveCLI(args=arguments(world, given))
    assert [path.name for path in (home / "here").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "^ckpt_path: 'other.ckpt' is no checkpoint of a training; weights alone"),
        (torch.zeros(1), "^ckpt_path: 'other.ckpt' is no checkpoint of a training"),
        (Fraction(1, 3), "other.ckpt cannot be read as a checkpoint"),
    ],
)
def test_a_file_of_torch_that_is_no_checkpoint(world, home, content, message):
    torch.save(content, home / "here" / "other.ckpt")
    with pytest.raises(LitEveError, match=message):
        EveCLI(args=[*arguments(world, "run", **{"trainer.max_steps": 1}), "--ckpt_path=other.ckpt"])


def test_a_run_folder_stands_for_its_newest_checkpoint(world, tmp_path):
    EveCLI(args=arguments(world, tmp_path / "run", **{"trainer.max_steps": 2}))
    args = arguments(world, tmp_path / "run", **{"trainer.limit_val_batches": 1})
    values = [
        EveCLI(args=["validate", *args[1:], f"--ckpt_path={given}"]).trainer.callback_metrics["val/loss"]
        for given in ("last", tmp_path / "run", tmp_path / "run" / "checkpoints" / "step00000002.ckpt")
    ]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("log_every_n_steps=0", "trainer.log_every_n_steps must be at least 1, got 0"),
        ("check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch must be at least 1, got 0"),
        ("accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be at least 1, got 0"),
        ("val_check_interval=0", "trainer.val_check_interval must be positive, got 0"),
        ("val_check_interval=1.5", "trainer: .*val_check_interval"),
        ("max_epochs=-3", "trainer: .*max_epochs"),
        ("max_steps=-3", "trainer: .*max_steps"),
        ("limit_val_batches=-1", "trainer: .*limit_val_batches"),
        ("gradient_clip_algorithm=vale", "trainer: .*gradient_clip_algorithm.*vale"),
        ("max_time=nonsense", "trainer: .*nonsense"),
        ("devices=zero", "trainer: .*devices.*CPUAccelerator"),
        pytest.param(
            "logger=WandbLogger",
            "a class in the settings needs the package wandb, which is not installed: pip install wandb",
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="it is installed"),
        ),
    ],
)
def test_what_lightning_refuses_is_one_sentence_before_data_is_read(world, tmp_path, setting, message):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments(world, tmp_path / "run"), f"--trainer.{setting}"])
    assert re.match(f"error: {message}", stopped.value.code), stopped.value.code
    assert "\n" not in stopped.value.code and not (tmp_path / "run").exists()


def test_validations_further_apart_than_an_epoch(world, tmp_path):
    """Batches between validations are counted over epochs."""
    args = {"trainer.max_epochs": 2, "trainer.limit_train_batches": 4, "trainer.limit_val_batches": 1}
    EveCLI(args=arguments(world, tmp_path, **args, **{"trainer.val_check_interval": 6}))
    assert len(micro.scalars(tmp_path, "val/loss")) >= 1


def test_steps_alone_say_how_long_a_run_is(world, tmp_path):
    short = {"trainer.limit_train_batches": 3}
    assert EveCLI(args=arguments(world, tmp_path / "a", **short, **{"trainer.max_steps": 7})).trainer.global_step == 7
    both = {"trainer.max_steps": 7, "trainer.max_epochs": 2}
    assert EveCLI(args=arguments(world, tmp_path / "b", **short, **both)).trainer.global_step == 6
    assert EveCLI(args=arguments(world, tmp_path / "c", **short)).trainer.global_step == 3


@pytest.mark.parametrize("content", ["model: [1", "a: 1", "", "data: 3"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/config.yaml is damaged")):
        refuse_other_settings(tmp_path, "data: {class_path: lit_eve.data.EveDataModule, init_args: {}}")
