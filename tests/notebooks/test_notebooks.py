"""The notebooks: stored with what they print and draw, readable, of no machine; run from top to bottom where Jupyter is."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OUTPUTS = {"stream", "display_data", "execute_result"}
MACHINE = re.compile(r"EPYC|Xeon|Intel|GeForce|Tesla|NVIDIA [A-Z]\d|localhost|Traceback|[/\\](?:site|dist)-packages")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def code_of(cell: dict[str, Any]) -> str:
    """The Python of a cell: IPython's own lines are left out."""
    return "".join(line for line in cell["source"] if not line.startswith(("%", "!")))


def texts(cell: dict[str, Any]) -> Iterator[str]:
    """All that a cell prints or shows, but pictures."""
    for output in cell["outputs"]:
        yield "".join(output.get("text", ""))
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield "".join(content)


def says_something(code: str) -> bool:
    """Whether a cell prints, draws, or ends with a value that Jupyter shows."""
    body = ast.parse(code).body
    if body and isinstance(body[-1], ast.Expr):
        return True
    run = [
        node for statement in body if not isinstance(statement, ast.FunctionDef | ast.ClassDef) for node in ast.walk(statement)
    ]
    called = {node.func.id for node in run if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return "print" in called


def test_there_are_notebooks_and_their_list_is_complete():
    listed = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert NOTEBOOKS and listed == [path.name for path in NOTEBOOKS]


@each
def test_the_first_cell_says_what_is_asked(path):
    first = json.loads(path.read_text())["cells"][0]
    lines = "".join(first["source"]).splitlines()
    assert first["cell_type"] == "markdown" and lines[0].startswith("# ")
    assert any(line.startswith("**The question.**") and "?" in "".join(lines) for line in lines)


@each
def test_it_was_run_from_top_to_bottom_and_kept_what_it_said(path):
    content = json.loads(path.read_text())
    assert content["nbformat"] == 4 and len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for number, cell in enumerate(code, 1):
        assert {output["output_type"] for output in cell["outputs"]} <= OUTPUTS, f"cell {number} ended with an error"
        assert cell["outputs"] or not says_something(code_of(cell)), f"cell {number} lost its output"
    pictures = [output for cell in code for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert pictures and path.stat().st_size < 700_000


@each
def test_its_outputs_are_of_no_machine(path):
    from tests.test_repo import PRIVATE

    for number, cell in enumerate(cells(path, "code"), 1):
        for text in texts(cell):
            for pattern in (MACHINE, PRIVATE):
                assert not (match := pattern.search(text)), f"cell {number}: {match[0]}"
        assert not any(output.get("name") == "stderr" for output in cell["outputs"]), f"cell {number} has warnings"


@each
def test_models_are_loaded_in_one_way(path):
    code = "\n".join(code_of(cell) for cell in cells(path, "code"))
    assert not re.search(r"from_pretrained|torch\.load\(|load_state_dict", code)


@each
def test_its_links_resolve(path):
    from tests.test_repo import anchors

    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])):
            if link.startswith("https://"):
                continue
            file, _, anchor = link.partition("#")
            assert (target := FOLDER / file).exists(), link
            assert not anchor or anchor in anchors(target), link


# ---- run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's after `make nano`, with a run of a few steps in runs/nano."""
    for package in ("nbclient", "nbformat", "ipykernel", "pandas"):
        pytest.importorskip(package, reason="the notebooks need Jupyter: requirements-notebooks.txt")
    from lit_eve.nano.pipeline import run_pipeline
    from tests.nano.test_pipeline import write_config

    folder = tmp_path_factory.mktemp("repository")
    for name in ("docs", "experiments", "tests/data/eve_v1"):
        shutil.copytree(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_pipeline(Path("runs/nano"), write_config(folder / "config"))
    return folder


def run(path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run a notebook in a copy of the repository: what its cells print and show."""
    import nbclient
    import nbformat

    (place / "notebooks").mkdir(exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(place / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
@each
def test_it_runs(path, place, monkeypatch):
    monkeypatch.delenv("EVE_WEIGHTS", raising=False)
    assert any("image/png" in output.get("data", {}) for output in run(path, place, monkeypatch))


@pytest.mark.slow
def test_official_weights_that_are_there_are_taken(place, tmp_path, monkeypatch):
    weights = shutil.copytree(place / "tests/data/eve_v1/a672/weights", tmp_path / "EVE-tiny")
    shutil.copytree(place / "tests/data/eve_v1/tokenizer", weights, dirs_exist_ok=True)
    monkeypatch.setenv("EVE_WEIGHTS", str(weights))
    said = "".join(output.get("text", "") for output in run(FOLDER / "06_from_official_weights.ipynb", place, monkeypatch))
    assert "loading the weights that are there" in said and "What colour is the triangle? Answer in one word. ->" in said
