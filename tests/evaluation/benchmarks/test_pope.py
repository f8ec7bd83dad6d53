from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_eve.errors import LitEveError
from lit_eve.evaluation.answers import read_answers, record
from lit_eve.evaluation.benchmarks import BENCHMARKS, Problems
from lit_eve.evaluation.tasks import Task
from tests.evaluation.golden import expected, inputs
from tests.evaluation.micro import lines_of, make_pope


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image", 7, "'image' is no text"),
        ("text", None, "'text' is no text"),
        ("question_id", [1], "'question_id' is no whole number"),
        ("label", None, "'label' is no text"),
        ("label", "maybe", "the label 'maybe' is none of yes, no"),
    ],
)
def test_a_question_that_cannot_be_used_is_told(tmp_path, key, value, message):
    path = make_pope(tmp_path, 3) / "pope/coco/coco_pope_popular.json"
    rows = lines_of(path)
    rows[1][key] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LitEveError, match=f"coco_pope_popular.json, line 2: {message}"):
        BENCHMARKS["pope"].questions(tmp_path / "pope")
    assert len(BENCHMARKS["pope"].questions(tmp_path / "pope", allow_partial=True)) == 8


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def official(tmp_path) -> Path:
    """The invented files, with LLaVA's question file and empty images."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "val2014").mkdir()
    for name, rows in inputs("pope")["label_files"].items():
        write_lines(tmp_path / "coco" / name, rows)
        for row in rows:
            (tmp_path / "val2014" / row["image"]).touch()
    write_lines(tmp_path / "llava_pope_test.jsonl", inputs("pope")["questions_jsonl"])
    write_lines(tmp_path / "eve.jsonl", inputs("pope")["predictions_jsonl"])
    return tmp_path


def test_answer_files_of_llava_and_eve_are_known_by_their_numbers(official):
    questions, problems = BENCHMARKS["pope"].questions(official), Problems()
    answers = read_answers(official / "eve.jsonl", Task(BENCHMARKS["pope"], "test", questions, questions), problems)
    assert not problems and len(answers) == 99
    metric = BENCHMARKS["pope"].metric(questions)
    metric.update(list(answers), list(answers.values()))
    scores, wanted = metric.compute(), expected("pope")["eve_eval_pope"]
    assert scores["f1"] == pytest.approx(100 * wanted["average_over_splits"]["f1"], abs=1e-6)
    for part, of_part in wanted["per_split"].items():
        assert scores[f"accuracy/{part}"] == pytest.approx(100 * of_part["accuracy"], abs=1e-6)
    numbers = {record(question, "", "")["question_id"] for question in questions}
    assert numbers == {row["question_id"] for row in inputs("pope")["questions_jsonl"]}  # so do those that are written


def test_a_question_that_llava_does_not_number_keeps_its_own_id(official):
    rows = inputs("pope")["questions_jsonl"]
    write_lines(official / "llava_pope_test.jsonl", rows[1:])
    ids = [record(question, "", "")["question_id"] for question in BENCHMARKS["pope"].questions(official)]
    assert [id for id in ids if isinstance(id, str)] == ["adversarial/1"]


def test_the_same_question_twice_has_two_numbers(official):
    path = official / "coco/coco_pope_random.json"
    rows = lines_of(path)
    write_lines(path, [*rows, {**rows[0], "question_id": 99}])
    numbered = lines_of(official / "llava_pope_test.jsonl")
    again = next(
        row
        for row in numbered
        if (row["category"], row["image"]) == ("random", rows[0]["image"]) and row["text"].startswith(rows[0]["text"])
    )
    write_lines(official / "llava_pope_test.jsonl", [*numbered, {**again, "question_id": 1000}])
    found = {question.id: question.fields.get("question_id") for question in BENCHMARKS["pope"].questions(official)}
    assert (found["random/1"], found["random/99"]) == (again["question_id"], 1000)


def test_numbers_without_llavas_file_point_to_it(official):
    (official / "llava_pope_test.jsonl").unlink()
    questions, problems = BENCHMARKS["pope"].questions(official), Problems()
    task = Task(BENCHMARKS["pope"], "test", questions, questions, source=official)
    assert read_answers(official / "eve.jsonl", task, problems) == {}
    number = inputs("pope")["predictions_jsonl"][0]["question_id"]
    assert f"line 1: there is no question {number}; ids are such as " in problems.lines[0]
    assert (
        f"llava_pope_test.jsonl, which is in LLaVA's eval.zip, in the folder pope, and belongs in {official}"
        in problems.lines[0]
    )
    assert "llava_pope_test" not in problems.lines[1]
