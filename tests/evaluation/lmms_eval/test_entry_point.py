"""What holds whether lmms-eval is installed or not."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_entry_point_is_declared_and_resolves() -> None:
    (name, value), *others = PROJECT["entry-points"]["lmms_eval.models"].items()
    assert name == "lit_eve" and not others
    assert callable(EntryPoint(name, value, "lmms_eval.models").load())


def test_without_lmms_eval_the_adapter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "lmms_eval" or name.endswith("lmms_eval.adapter")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ImportError, match=r"lmms-eval 0\.7\.3 or newer, see requirements-lmms-eval\.txt"):
        importlib.import_module("lit_eve.evaluation.lmms_eval.adapter")


def test_the_environment_has_the_tested_versions() -> None:
    lines = (ROOT / "requirements-lmms-eval.txt").read_text().splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert "--editable .[lmms-eval]" in pinned
    for package in ("torch", "transformers"):
        (version,) = [line for line in constraints if line.startswith(f"{package}==")]
        assert version in pinned
    least = {re.split("[>=]+", requirement)[0] for requirement in PROJECT["optional-dependencies"]["lmms-eval"]}
    assert least <= {line.split("==")[0] for line in pinned}
