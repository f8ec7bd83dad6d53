from __future__ import annotations

import http.server
import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from lit_eve.cli import main
from lit_eve.data import ShardReader
from lit_eve.data.shards.index import index_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.demo.chat import HELP, speed
from lit_eve.demo.completion import completions
from lit_eve.demo.saving import save_conversation
from lit_eve.demo.session import ChatSession, check_question
from lit_eve.demo.web import pictures
from lit_eve.demo.web.pictures import Limits
from lit_eve.errors import LitEveError, SampleError
from lit_eve.evaluation import answer_all
from tests.tiny_model import make_tiny, scene_image

ROOT = Path(__file__).parents[2]
QUESTION = "how many red shapes are there?"


def chat(*args: object) -> int:
    return main(["chat", *map(str, args)])


def expected(*queries: tuple, length: int = 8) -> list[str]:
    return answer_all(*make_tiny(), list(queries), max_new_tokens=length, progress=None)


def test_one_question_prints_the_answer_and_nothing_else(model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    run = model_folder.parent
    images = [run / "0.png", run / "1.png"]
    code = chat("--model", run, "--image", images[0], "--image", images[1], QUESTION, "--max-new-tokens", 8)
    assert (code, capsys.readouterr().out.strip()) == (0, *expected((images, QUESTION)))


def test_conversation(model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    image = model_folder.parent / "0.png"
    lines = [
        f"/image {image}",
        QUESTION,
        "is there a cross?",
        "/image no.png",
        "/what",
        "/reset",
        "is there a cross?",
        "/quit",
        "no",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert chat("--model", model_folder, "--max-new-tokens", 8) == 0
    (first,) = expected(([image], QUESTION))
    turns = [
        {"role": "user", "content": "<image>\n" + QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "is there a cross?"},
    ]
    second, alone = expected(([image], turns), ([], "is there a cross?"))
    assert alone != second
    width, height = scene_image(0).size
    heard = [
        f"({image}: {width} x {height}, comes with your next question)",
        *(first, second),
        "error: no.png: the image cannot be opened: [Errno 2] No such file or directory: 'no.png'",
        *("unknown command '/what'", HELP, "(a new conversation)", alone),
    ]
    assert capsys.readouterr().out.split() == " ".join(heard).split()


def test_end_of_input_leaves(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert chat("--model", model_folder) == 0


def test_sampling_follows_the_seed(model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    def ask(*options: object) -> str:
        chat("--model", model_folder, QUESTION, "--max-new-tokens", 12, *options)
        return capsys.readouterr().out

    assert ask("--temperature", 3, "--seed", 1) == ask("--temperature", 3, "--seed", 1) != ask("--temperature", 3, "--seed", 2)
    assert ask("--temperature", 3, "--top-k", 1) == ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{run}/nowhere", QUESTION], "nowhere is no folder"),
        (["--model", "{run}", "--image", "no.png", QUESTION], "no.png: the image cannot be opened"),
        (["--model", "{run}", "--image", "{run}/model/config.json", QUESTION], "config.json: the image cannot be opened"),
        (["--model", "{run}", " "], "the question is empty"),
        (["--model", "{run}", QUESTION, "--temperature", "-1"], "--temperature must be a number of at least 0, got -1.0"),
        (["--model", "{run}", QUESTION, "--temperature", "nan"], "--temperature must be a number of at least 0, got nan"),
        (["--model", "{run}", QUESTION, "--temperature", "inf"], "--temperature must be a number of at least 0, got inf"),
        (["--model", "{run}", "--image", "s3://bucket/x.png", QUESTION], "from http:, https:, file: and data:, not from s3"),
        (["--model", "{run}", "caf\udce9?"], "the question is no text in UTF-8"),
        (["--model", "{run}", QUESTION, "--top-p", "1.5"], "--top-p must be above 0 and at most 1, got 1.5"),
        (
            ["--model", "{run}", QUESTION, "--seed", str(2**63)],
            "--seed must be a whole number of 64 bits, got 9223372036854775808",
        ),
        (["--model", "{run}", QUESTION, "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--model", "{run}", QUESTION, "--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    model_folder: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert chat(*(option.format(run=model_folder.parent) for option in options)) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("lit-eve chat: ") and message in line and "Traceback" not in err and not out


def test_a_turn_that_fails_is_forgotten_and_its_images_stay() -> None:
    session = ChatSession(*make_tiny(), max_new_tokens=4)
    session.add_image(scene_image(0))
    with pytest.raises(LitEveError, match="the question is empty"):
        session.ask("  ")
    session.model.config.text_config.max_position_embeddings = 20
    with pytest.raises(LitEveError, match="the decoder reads 20: reset it"):
        session.ask(QUESTION)
    assert not session.messages and len(session.waiting) == 1
    session.model.config.text_config.max_position_embeddings = 512
    session.ask(QUESTION)
    assert len(session.messages) == 2 and not session.waiting
    with pytest.raises(SampleError):
        session.add_image("no.png")


def talk(model_folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert chat("--model", model_folder, "--max-new-tokens", 8) == 0


def test_images_as_people_and_terminals_write_them(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "it's a scene.png"
    scene_image(0).save(path)
    scene_image(1).save(tmp_path / "b.png")
    written = str(path).replace(" ", "\\ ").replace("'", "\\'")
    forms = [str(path), f'"{path}"', written, path.as_uri(), f"'{path.as_uri()}'", "~/b.png", f'"{path}" {tmp_path}/b.png']
    dropped = [written, f'"{path}"', path.as_uri(), "~/b.png"]
    talk(model_folder, monkeypatch, *(f"/image {form}" for form in forms), *dropped, "/image", "/image 'no", "/image no no.png")
    out = capsys.readouterr().out
    (width, height), other = scene_image(0).size, scene_image(1).size
    assert out.count(f": {width} x {height}, comes with") == 9 and out.count(f": {other[0]} x {other[1]}, comes with") == 3
    assert "error: /image needs the path or the URL" in out and "error: 'no: " in out and "error: no no.png: " in out


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of the files of a folder; gives its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_from_a_server(model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(model_folder.parent) as url:
        assert chat("--model", model_folder, "--image", f"{url}/0.png", QUESTION, "--max-new-tokens", 8) == 0
        assert capsys.readouterr().out.strip() == expected(([model_folder.parent / "0.png"], QUESTION))[0]
        talk(model_folder, monkeypatch, f"/image {url}/1.png", f"/image {url}/2.png")
    out = capsys.readouterr().out
    assert f"({url}/1.png: " in out and f"error: {url}/2.png: the image cannot be downloaded: HTTP 404" in out


@pytest.mark.parametrize("word", ["/quit", "/exit", "quit", "exit", "Exit"])
def test_ways_to_leave(model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    talk(model_folder, monkeypatch, word, "/reset")
    assert not capsys.readouterr().out.strip()


def test_a_temperature_of_zero_is_greedy(model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    answers = set()
    for options in ([], ["--temperature", 0], ["--temperature", 0, "--top-p", 0.9, "--seed", 3]):
        assert chat("--model", model_folder, QUESTION, "--max-new-tokens", 12, *options) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1


def test_an_interrupted_answer_is_forgotten(
    model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, calls = ChatSession.ask, []

    def interrupted(self: ChatSession, question: str, streamer: object = None) -> str:
        calls.append(len(self.messages))
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return ask(self, question, streamer)

    monkeypatch.setattr(ChatSession, "ask", interrupted)
    talk(model_folder, monkeypatch, QUESTION, QUESTION)
    assert calls == [0, 0]
    assert capsys.readouterr().out.split() == f"(stopped; this turn is forgotten) {expected(([], QUESTION))[0]}".split()


def test_bytes_that_are_no_text_end_nothing(model_folder: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes((model_folder.parent / "0.png").read_bytes())
    command = [sys.executable, "-m", "lit_eve.cli", "chat", "--model", model_folder, "--max-new-tokens", "8"]
    question = QUESTION.encode()
    lines = b"/image " + name + b"\n" + question + b"\n\xe7\x8c\n" + question
    done = subprocess.run(command, input=lines, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    first = expected(([model_folder.parent / "0.png"], QUESTION))[0]
    turns = [{"role": "user", "content": "<image>\n" + QUESTION}, {"role": "assistant", "content": first}]
    second = expected(([model_folder.parent / "0.png"], [*turns, {"role": "user", "content": QUESTION}]))[0]
    shown, said = done.stdout.decode().strip().split("\n", 1)
    assert b"Loading" not in done.stderr  # a bar that nobody sees
    assert done.returncode == 0 and "caf\\udce9.png: " in shown
    assert said.split() == f"{first} error: the question is no text in UTF-8 {second}".split()
    with pytest.raises(LitEveError, match="no text in UTF-8"):
        check_question("caf\udce9?")


def test_a_saved_conversation_is_packed_and_read_as_the_model_read_it(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [model_folder.parent / f"{seed}.png" for seed in range(2)]
    file = tmp_path / "my talks" / "talk.json"
    saved: list[ChatSession] = []
    monkeypatch.setattr(ChatSession, "reset", lambda self, reset=ChatSession.reset: (saved.append(self), reset(self)))
    first = ["/save x.json", f"/image {images[0]}", QUESTION]
    more = [f"/image {images[0]}", f"/image {images[1]}", "is there a cross?", "what is red?"]
    refused = [f"/save {file}", "/save", "is <image> red?", "/save b"]
    talk(model_folder, monkeypatch, *first, *more, f"/save {file}", *refused)
    out = capsys.readouterr().out
    assert f"({file}: 3 turns, 3 images)" in out and f"error: {file} exists already: choose another name" in out
    for message in ("nothing was asked yet", "/save needs the name of one file", "turn 4 has <image> in its text"):
        assert f"error: {message}" in out
    assert sorted(path.name for path in file.parent.rglob("*")) == ["1.png", "2.png", "3.png", "talk.json", "talk_images"]

    output = tmp_path / "shards"
    assert main(["pack", f"--annotations={file}", f"--images={file.parent}", f"--output={output}", "--processes=1"]) == 0
    (shard,) = list_shards(output)
    index = index_shard(shard)
    sample = ShardReader([shard]).read(0, int(index.offset[0]), int(index.size[0]))
    _, processor = make_tiny()
    read = processor.encode_sample(sample, with_labels=False)
    seen = processor(conversation=saved[0].messages[:6], add_generation_prompt=False)
    assert read["input_ids"].tolist() == seen["input_ids"][0].tolist()
    assert read["pixel_values"].equal(seen["pixel_values"]) and len(read["image_grid_hw"]) == 3


@pytest.mark.parametrize("place", ["{folder}/file/talk.json", "{folder}/caf\udce9.json"])
def test_a_conversation_that_cannot_be_written_is_a_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LitEveError, match="cannot be written: "):
        save_conversation([{"role": "user", "content": "why?"}], Path(place.format(folder=tmp_path)))


def test_the_speed_is_told_beside_the_answer(model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert chat("--model", model_folder, QUESTION, "--max-new-tokens", 8, "--stats") == 0
    out, err = capsys.readouterr()
    assert out.strip() == expected(([], QUESTION))[0]
    assert re.search(r"^\(\d tokens in \d+\.\d\d s: \d+\.\d tokens/s; the first after \d+\.\d\d s\)$", err, re.MULTILINE)
    assert speed([0.5, 1, 2]) == "(3 tokens in 2.00 s: 1.5 tokens/s; the first after 0.50 s)"


def test_images_of_urls_have_limits(model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = model_folder.parent / "0.png"
    size, (width, height) = file.stat().st_size, scene_image(0).size
    with serving(model_folder.parent) as url:
        for limits, message in (
            (Limits(bytes=size), None),
            (Limits(bytes=size - 1), f"{url}/0.png: the image has more than {size - 1:,} bytes, the limit of a download"),
            (Limits(pixels=width * height - 1), f"{url}/0.png: the image has {width} x {height} pixels"),
        ):
            monkeypatch.setattr(pictures, "LIMITS", limits)
            assert chat("--model", model_folder, "--image", f"{url}/0.png", QUESTION, "--max-new-tokens", 1) == 2 * bool(
                message
            )
            assert (message or "") in capsys.readouterr().err
    assert chat("--model", model_folder, "--image", file, QUESTION, "--max-new-tokens", 1) == 0  # one's own have none


def test_completion_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("photo.PNG", "photo.txt", "a b c.jpg", "a b d.json", "[x].gif"):
        (tmp_path / name).touch()
    (tmp_path / "pictures").mkdir()
    for line, found in (
        ("/im", ["/image "]),
        ("/image p", ["photo.PNG", "pictures/"]),
        ("/image ~/ph", ["~/photo.PNG"]),
        (f"/image {tmp_path}/pi", [f"{tmp_path}/pictures/"]),
        ("/image a b ", ["c.jpg"]),
        ("/image a", ["a b c.jpg"]),
        ("/image [", ["[x].gif"]),
        ("/save a b", ["b d.json"]),
        ("/save pic", ["pictures/"]),
        *((line, []) for line in ("", "what p", "/help p", "/image q")),
    ):
        assert completions(line) == found, line


def test_tab_completes_paths_in_a_terminal(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    scene_image(0).save(tmp_path / "a (new) photo.png")
    command = [sys.executable, "-m", "lit_eve.cli", "chat", "--model", str(model_folder)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(command[0], command, {**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT)})
    out = b""
    with suppress(OSError):  # the end of a terminal
        while piece := os.read(terminal, 1024):
            out += piece
            if b"type /help" in out and b"/image" not in out:
                os.write(terminal, b"/ima\ta\t\n/image a (n\t\n/quit\n")
    os.waitpid(pid, 0)
    width, height = scene_image(0).size
    assert out.count(f"(a (new) photo.png: {width} x {height}, comes with".encode()) == 2, out.decode()


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_threads_that_wait_sleep_unless_told_otherwise(policy: str | None) -> None:
    code = (
        "import os, sys\nfrom lit_eve.cli import main\n"
        "def watch(event, arguments):\n    if event == 'import' and arguments[0] == 'torch':\n"
        "        print(os.environ.get('OMP_WAIT_POLICY'))\n        os._exit(0)\n"
        "sys.stdout.reconfigure(line_buffering=True)\nsys.addaudithook(watch)\nmain(['chat', '--model', 'x', 'why?'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == (policy or "PASSIVE")
