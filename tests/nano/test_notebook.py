"""What the notebooks begin with."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import rich

from lit_eve.errors import ConfigError
from lit_eve.nano import notebook


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    (tmp_path / "experiments/nano").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_a_trained_miniature_is_taken_as_it_is(checkout, monkeypatch):
    (checkout / "runs/nano/model").mkdir(parents=True)
    monkeypatch.setattr(notebook, "run_pipeline", lambda *_: pytest.fail("it was trained already"))
    for _ in range(2):  # a cell is run again
        assert notebook.miniature() == Path("runs/nano")
        assert Path.cwd() == checkout


def test_a_missing_miniature_is_trained(checkout, monkeypatch):
    trained = []
    monkeypatch.setattr(notebook, "run_pipeline", lambda *arguments: trained.append(arguments))
    assert notebook.miniature() == Path("runs/nano")
    assert trained == [(Path("runs/nano"), Path("experiments/nano"))]


def test_a_place_without_the_repository_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no experiments/nano in .* or above it"):
        notebook.miniature()


@pytest.fixture
def trained(checkout, monkeypatch) -> Path:
    monkeypatch.chdir(checkout)
    shutil.copy(Path(__file__).parents[2] / "experiments/nano/1_prealign.yaml", "experiments/nano")
    for part in ("language_model", "teacher"):
        (checkout / "runs/nano" / part).mkdir(parents=True)
        (checkout / "runs/nano" / part / "model.safetensors").write_bytes(part.encode())
    return checkout


def test_a_stage_is_trained_with_other_settings_and_in_silence(trained, monkeypatch, capsys):
    seen = {}

    def train_stage(name, settings, output):
        print("a word")
        rich.print("a word")
        assert not rich.get_console().is_jupyter  # its widgets would be drawn behind all that is redirected
        seen.update(name=name, output=output, silent=not logging.getLogger("lightning").isEnabledFor(logging.INFO), **settings)
        raise ConfigError("refused")

    monkeypatch.setattr(notebook, "train_stage", train_stage)
    with pytest.raises(ConfigError, match="refused"):
        notebook.train(Path("runs/mine/two"), "1_prealign", {"lr": 0.5}, seed=7)
    assert (seen["name"], seen["output"], seen["silent"], seen["seed_everything"]) == ("two", Path("runs/mine"), True, 7)
    assert seen["model"]["lr"] == 0.5 and seen["model"]["decoder"] == "runs/nano/language_model"
    assert seen["trainer"]["default_root_dir"] == "runs/mine/two"
    assert logging.root.manager.disable == logging.NOTSET
    assert capsys.readouterr() == ("", "")
    rich.print("heard again")
    assert capsys.readouterr().out == "heard again\n"


def test_a_run_from_another_miniature_is_not_taken_for_one_of_this(trained, monkeypatch):
    monkeypatch.setattr(notebook, "train_stage", lambda name, settings, output: (output / name / "config.yaml").touch())
    again = lambda: notebook.train(Path("runs/mine/two"), "1_prealign", {})  # noqa: E731
    assert again() == again() == Path("runs/mine/two")
    (trained / "runs/nano/teacher/model.safetensors").write_bytes(b"another")
    with pytest.raises(ConfigError, match="runs/mine/two was not trained from .* in runs/nano now: remove runs/mine/two"):
        again()
