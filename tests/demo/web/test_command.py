from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from lit_eve.cli import main
from lit_eve.cli.demo import examples
from lit_eve.cli.model_server import names_of
from lit_eve.demo.web import server
from lit_eve.errors import ConfigError
from tests.demo.web.asking import free_port


def demo(*args: object) -> int:
    return main(["demo", "--port", str(free_port()), *map(str, args)])


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio need not be there for what is refused before."""
    monkeypatch.setattr(server, "require_gradio", lambda: None)
    monkeypatch.setattr(server, "serve_page", lambda *args, **kwargs: pytest.fail("the page was opened"))


def sentence(capsys: pytest.CaptureFixture) -> str:
    out, err = capsys.readouterr()
    assert "Traceback" not in err and not out
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{run}/nowhere"], "nowhere is no folder"),
        (["--model", "{run}", "--model", "{run}/../run0/"], "--model names the same model twice"),
        (["--model", "{run}", "--port", "70000"], "--port must be between 1 and 65535, got 70000"),
        (["--model", "{run}", "--host", "no.such.host.invalid"], "--host no.such.host.invalid is no address"),
        (["--model", "{run}", "--queue", "0"], "--queue must be above 0, got 0"),
        (["--model", "{run}", "--max-megabytes", "-1"], "--max-megabytes must be above 0, got -1.0"),
        (["--model", "{run}", "--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    model_folder: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    options = [option.replace("run0", model_folder.parent.name) for option in options]
    assert demo(*(option.format(run=model_folder.parent) for option in options)) == 2
    line = sentence(capsys)
    assert line.startswith("lit-eve demo: ") and message in line


def test_models_that_are_none(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bare, other = (shutil.copytree(model_folder, tmp_path / name) for name in ("bare", "other"))
    (bare / "model.safetensors").unlink()
    assert demo("--model", bare) == 2
    assert f"{bare} cannot be loaded" in sentence(capsys)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert demo("--model", model_folder, "--model", other) == 2
    said = sentence(capsys)
    assert f"{other} is neither an EVE of lit_eve nor an official EVE v1, EVE v2" in said and "config.json says 'llama'" in said


def test_a_port_in_use_is_told_and_no_other_is_taken(model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo("--model", model_folder, "--port", port) == 2
        assert f"port {port} of 127.0.0.1 is in use" in sentence(capsys)
    server.check_address("127.0.0.1", port)


def test_without_gradio_this_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match="the web demo needs Gradio: .*requirements-demo.txt"):
        server.require_gradio()


def test_names_of_models() -> None:
    assert names_of(["runs/a/model", "runs/b"]) == ["a", "b"]
    assert names_of(["x/a/model", "y/a/model", "c"]) == ["x/a/model", "y/a/model", "c"]


def test_examples_are_made_and_have_answers() -> None:
    made = examples()
    assert [question for _, question in made] == [question for _, question in examples()]
    assert len({image.tobytes() for image, _ in made}) == len(made) == 4
