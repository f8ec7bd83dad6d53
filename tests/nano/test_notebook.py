"""What the notebooks begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

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
