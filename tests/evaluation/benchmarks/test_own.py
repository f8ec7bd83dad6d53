from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lit_eve.cli import main
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks.own import OwnBenchmark
from lit_eve.evaluation.results import rate_answers
from lit_eve.evaluation.tasks import find_tasks, load_tasks
from tests.evaluation.micro import make_pope

ROWS = [
    {"image": "a.png", "question": "Is there a dog?", "answer": "Yes", "category": "animals"},
    {"image": "a.png", "question": "Is there a cat?", "answer": "no", "category": "animals"},
    {"image": "b.png", "question": "What is it?", "options": ["a cat", "a dog"], "answer": "B", "id": "choice"},
    {"image": "b.png", "question": "What is it?", "options": ["a cat", "a dog"], "answer": "a cat"},
    {"images": ["a.png", "b.png"], "question": "Which colour?", "answers": ["grey", "gray"]},
    {"question": "One and one?", "answer": "2", "prompt": "Compute: 1 + 1"},
]
ANSWERS = ["Yes, there is.", "yes", "B", "it is a dog", "Gray.", "two"]


@pytest.fixture
def path(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    return write(tmp_path / "mine.jsonl", ROWS)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions(path, tmp_path):
    questions = OwnBenchmark(path).questions("")
    assert [question.id for question in questions] == [1, 2, "choice", 4, 5, 6]
    assert questions[0].prompt == "Is there a dog?\nAnswer the question using a single word or phrase."
    assert questions[2].prompt == (
        "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."
    )
    assert questions[5].prompt == "Compute: 1 + 1" and questions[5].images == ()
    assert questions[4].images == (tmp_path / "a.png", tmp_path / "b.png")


def test_scores(path):
    questions = OwnBenchmark(path).questions("")
    answers = {question.id: answer for question, answer in zip(questions, ANSWERS, strict=True)}
    headline, scores = rate_answers(OwnBenchmark(path), questions, answers)
    assert (headline, scores["accuracy"]) == ("accuracy", 50)
    assert (scores["accuracy/yes_no"], scores["accuracy/choice"], scores["accuracy/text"]) == (50, 50, 50)
    assert (scores["yes_ratio"], scores["category/animals"]) == (100, 50)
    assert scores["f1"] == pytest.approx(100 * 2 / 3)  # one hit, one false alarm


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "?", "answer": "a", "anwser": "b"}, "unknown key 'anwser'; there are image,"),
        ({"question": "?"}, "it needs either 'answer' or a list 'answers'"),
        ({"question": "?", "answer": "a", "answers": ["a"]}, "it needs either 'answer' or a list 'answers'"),
        ({"question": "?", "answer": 2}, "answers must be texts"),
        ({"answer": "a"}, "'question' missing"),
        ({"question": "?", "options": ["a", "b"], "answer": "c"}, "the answer 'c' is none of the options"),
        ({"question": "?", "options": ["B", "A"], "answer": "A"}, "the answer 'A' is more than one of the options"),
        ({"question": "?", "options": ["a"], "answer": "a"}, "'options' must hold 2 to 26 texts"),
        ({"question": "?", "answer": "a", "image": 3}, "'image' must be a path"),
        ({"question": "?", "answer": "a", "image": "c.png"}, "c.png is missing"),
        ({"question": "?", "answer": "a", "id": 1}, "question 1 is there twice"),
    ],
)
def test_lines_that_make_no_question_are_told(path, tmp_path, row, told):
    write(path, [*ROWS, row])
    with pytest.raises(LitEveError, match="mine.jsonl, line 7: ") as error:
        OwnBenchmark(path).questions("")
    assert told in str(error.value)
    assert len(OwnBenchmark(path).questions("", allow_partial=True)) == 6


def test_files_are_named_beside_benchmarks(path, tmp_path):
    data = make_pope(tmp_path / "data", 1)
    found = find_tasks(["pope", str(path)], data, while_training=True)
    assert [benchmark.name for benchmark, _ in found] == ["pope", "mine"]
    assert [len(task.questions) for task in load_tasks(found, data, progress=False)] == [3, 6]
    with pytest.raises(ConfigError, match="there is no file .*nowhere.jsonl"):
        find_tasks(str(tmp_path / "nowhere.jsonl"), None)
    with pytest.raises(ConfigError, match="pope is the name of another benchmark; call the file otherwise"):
        find_tasks(str(path.rename(tmp_path / "pope.jsonl")), None)
    with pytest.raises(ConfigError, match="no folder of benchmarks is named"):
        find_tasks("pope", None)


def test_answers_are_scored_and_shown(path, tmp_path, capsys):
    rows = [{"question_id": id, "text": text} for id, text in zip([1, 2, "choice", 4, 5, 6], ANSWERS, strict=True)]
    answers, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "report"
    assert main(["evaluate", "--answers", str(answers), "--benchmarks", str(path), "--output", str(output)]) == 0
    (result,) = json.loads((output / "results.json").read_text())["results"]
    assert (result["task"], result["score"], result["answered"], result["notes"]) == ("mine", 50, 6, [])
    text = (output / "results.md").read_text()
    assert "| model | mine |" in text and "EVE-7B" not in text and "| category/animals | 50.00 |" in text
    assert not (output / "submissions").exists()
