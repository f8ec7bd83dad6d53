"""``lit-eve serve`` as a process of its own, and what it refuses before it starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from lit_eve.cli import main
from lit_eve.demo.api import server
from lit_eve.errors import ConfigError
from tests.demo.api.asking import client, data_url, opened, user
from tests.demo.web.asking import LENGTH, QUESTIONS, expected, free_port
from tests.tiny_model import scene_image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


def test_a_process_answers_until_it_is_told_to_end(model_folder: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "lit_eve.cli", "serve", "--model", str(model_folder), "--port", str(port)]
    environment = {**os.environ, "LIT_EVE_API_KEY": "k"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            name = model_folder.parent.name
            assert process.stdout.readline() == f"{name} on cpu: http://localhost:{port}/v1  (Ctrl-C ends it)\n"
            url = f"http://127.0.0.1:{port}/v1"
            message = user(QUESTIONS[0], data_url(scene_image(0)))
            options = {"model": name, "messages": [message], "temperature": 0, "max_tokens": LENGTH}
            answer = client(url, "k").chat.completions.create(**options)
            assert answer.choices[0].message.content == expected(QUESTIONS[0], 0)
            with pytest.raises(openai.AuthenticationError):
                client(url, "x").models.list()
            with pytest.raises(OSError):  # there and nowhere else
                socket.create_connection(("127.0.0.2", port), timeout=5)
            assert main(["serve", "--model", str(model_folder), "--port", str(port)]) == 2
            assert opened(f"http://127.0.0.1:{port}/health")[0] == 200
        finally:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not out and not err


def refused(capsys: pytest.CaptureFixture, *args: object) -> str:
    assert main(["serve", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("lit-eve serve: ") and "Traceback" not in err and not out
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{run}/nowhere"], "nowhere is no folder"),
        (["--model", "{run}", "--model", "{run}/model"], "is in use"),
        (["--model", "{run}", "--port", "0"], "--port must be between 1 and 65535, got 0"),
        (["--model", "{run}", "--api-key", ""], "--api-key (or LIT_EVE_API_KEY) must be of printable ASCII characters"),
        (["--model", "{run}", "--api-key", "clé"], "--api-key (or LIT_EVE_API_KEY) must be of printable ASCII characters"),
        (["--model", "{run}", "--batch-size", "0"], "--batch-size must be above 0, got 0"),
        (["--model", "{run}", "--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    model_folder: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if message == "is in use" else free_port()
        line = refused(capsys, "--port", port, *(option.format(run=model_folder.parent) for option in options))
    assert message in line and (message != "is in use" or f"port {port} of 127.0.0.1 is in use" in line)


def test_models_that_are_none(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bare, other = (shutil.copytree(model_folder, tmp_path / name) for name in ("bare", "other"))
    (bare / "model.safetensors").unlink()
    assert f"{bare} cannot be loaded" in refused(capsys, "--model", bare, "--port", free_port())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "blip-2"}))
    assert "config.json says 'blip-2'" in refused(capsys, "--model", other, "--port", free_port())


def test_without_what_serves_this_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match="the endpoint needs starlette and uvicorn: .*serve"):
        server.require_server()
