from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lit_eve.cli import main
from lit_eve.demo.chat import HELP
from lit_eve.demo.session import ChatSession
from lit_eve.errors import LitEveError, SampleError
from lit_eve.evaluation import answer_all
from tests.tiny_model import make_tiny, scene_image

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
        (["--model", "{run}", QUESTION, "--temperature", "0"], "--temperature must be above 0, got 0.0"),
        (["--model", "{run}", QUESTION, "--top-p", "1.5"], "--top-p must be above 0 and at most 1, got 1.5"),
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
