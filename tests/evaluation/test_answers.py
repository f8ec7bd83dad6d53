from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lit_eve.evaluation.answers import AnswerStore, read_answers
from lit_eve.evaluation.benchmarks import Problems
from lit_eve.evaluation.tasks import Task, find_tasks, load_tasks
from tests.evaluation.micro import lines_of, make_pope


@pytest.fixture
def task(tmp_path) -> Task:
    data = make_pope(tmp_path / "data", 3)
    (found,) = load_tasks(find_tasks("pope", data), data, progress=False)
    return found


def write(path, rows) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_what_is_wrong_with_an_answer_file_is_told_by_line(task, tmp_path):
    rows = [{"question_id": question.id, "text": "No"} for question in task.questions]
    rows[2:2] = [dict(rows[0]), {"question_id": "random/99", "text": "No"}, '{"question_id": "random/3", "te', "[1]"]
    rows[7] = {"question_id": rows[7]["question_id"]}
    rows[8]["text"] = None
    write(tmp_path / "mine.jsonl", rows[:-1])
    problems = Problems()
    answers = read_answers(tmp_path / "mine.jsonl", task, problems)
    assert len(answers) == 6
    told = [
        r"line 3: question 'random/1' is answered twice, first in mine.jsonl, line 1",
        r"line 4: there is no question 'random/99'",
        r"line 5: no JSON",
        r"line 6: no JSON object",
        r"line 8: 'text' missing",
        r"line 9: the answer to question 'popular/2' is no text",
        r"3 of 9 questions have no answer: 'popular/1', 'popular/2', 'adversarial/3'",
    ]
    assert len(problems.lines) == len(told)
    for line, expected in zip(problems.lines, told, strict=True):
        assert line.startswith("mine.jsonl") and expected in line


def test_answers_survive_a_line_that_was_cut_off(task, tmp_path):
    store = AnswerStore(tmp_path, task, "m")
    store.append(task.questions[:2], ["a", "b\nc"])
    path = next(tmp_path.glob(".pope.jsonl.*"))
    path.write_bytes(path.read_bytes()[:-20])
    assert set(store.known()) == {task.questions[0].id}
    again = AnswerStore(tmp_path, task, "m")
    again.append(task.questions[1:3], ["ü", "d"])
    AnswerStore(tmp_path, task, "m", rank=1).append(task.questions[3:4], ["e"])
    assert list(store.known().values()) == ["a", "ü", "d", "e"]
    store.merge(store.known())
    assert [row["text"] for row in lines_of(tmp_path / "pope.jsonl")] == ["a", "ü", "d", "e"]
    assert [path.name for path in tmp_path.glob("*pope.jsonl*")] == ["pope.jsonl"]


def test_a_question_asked_in_other_words_is_asked_again(task, tmp_path):
    store = AnswerStore(tmp_path, task, "m")
    store.append(task.questions[:2], ["a", "b"])
    path = next(tmp_path.glob(".pope.jsonl.*"))
    path.write_text(path.read_text().replace("single word", "short word", 1))
    assert list(store.known().values()) == ["b"]


def test_answers_to_a_larger_set_are_kept_when_a_part_of_it_is_asked(task, tmp_path):
    store = AnswerStore(tmp_path, task, "m")
    store.append(task.questions, ["a"] * 9)
    part = Task(task.benchmark, task.split, task.questions[:2], task.available)
    smaller = AnswerStore(tmp_path, part, "m")
    smaller.merge(smaller.known())
    assert len(lines_of(tmp_path / "pope.jsonl")) == 9


def test_official_ids_that_several_questions_share_are_told_apart_by_the_prompt(task, tmp_path):
    shared = [replace(question, prompt=f"{i}?", fields={"question_id": 7}) for i, question in enumerate(task.questions)]
    twin = Task(task.benchmark, task.split, shared, shared)
    write(tmp_path / "mine.jsonl", [{"question_id": 7, "prompt": "4?", "text": "A"}, {"question_id": 7, "text": "B"}])
    problems = Problems()
    assert read_answers(tmp_path / "mine.jsonl", twin, problems) == {shared[4].id: "A"}
    assert "line 2: there is no question 7 with this prompt" in problems.lines[0]
