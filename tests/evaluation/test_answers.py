from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lit_eve.evaluation.answers import AnswerStore, read_answers, record
from lit_eve.evaluation.benchmarks import BENCHMARKS, Problems
from lit_eve.evaluation.tasks import Task, find_tasks, load_tasks
from lit_eve.nano.world.benchmarks import write_benchmarks
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


def test_a_question_about_another_image_is_asked_again(task, tmp_path):
    store = AnswerStore(tmp_path, task, "m")
    store.append(task.questions[:2], ["a", "b"])
    (image,) = task.questions[0].images
    image.write_bytes(image.read_bytes() + b" ")
    assert list(store.known().values()) == ["b"]


def test_an_answer_outlives_its_question(task, tmp_path):
    """Whose image is missing for a while, say."""
    store = AnswerStore(tmp_path, task, "m")
    store.append(task.questions, list("abcdefghi"))
    store.merge(store.known())
    without = AnswerStore(tmp_path, Task(task.benchmark, task.split, task.questions[1:], task.questions[1:]), "m")
    assert list(without.known().values()) == list("bcdefghi")
    for _ in range(2):
        without.merge(without.known())
        assert [row["text"] for row in lines_of(tmp_path / "pope.jsonl")] == list("bcdefghi")
    again = AnswerStore(tmp_path, task, "m")
    again.merge(again.known())
    assert [row["text"] for row in lines_of(tmp_path / "pope.jsonl")] == list("abcdefghi")
    assert (tmp_path / ".pope.jsonl.kept").read_text() == ""


def test_an_answer_comes_back_with_its_image(task, tmp_path):
    """A copy of the images that was cut short costs no answer."""
    store = AnswerStore(tmp_path / "answers", task, "m")
    store.append(task.questions[:2], ["a", "b"])
    (image,) = task.questions[0].images
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    store.merge(store.known())
    assert [row["text"] for row in lines_of(store.path)] == ["b"]
    image.write_bytes(whole)
    assert store.known() == {task.questions[0].id: "a", task.questions[1].id: "b"}


@pytest.mark.parametrize("metadata", [{}, None, "x"])
def test_answers_without_sizes_of_images_are_taken_as_they_are(task, tmp_path, metadata):
    store = AnswerStore(tmp_path, task, "m")
    write(store.path, [record(question, "a", "m") | {"metadata": metadata} for question in task.questions])
    assert len(store.known()) == 9
    few = AnswerStore(tmp_path, Task(task.benchmark, task.split, task.questions[:1], task.available), "m")
    few.merge(few.known())
    assert len(lines_of(store.path)) == 9


def test_of_questions_alike_the_one_that_is_asked_has_the_answer(task, tmp_path):
    twins = [replace(question, prompt="same?", fields={"question_id": 7}) for question in task.questions[:3]]
    twins = [replace(question, images=twins[0].images) for question in twins]
    store = AnswerStore(tmp_path, Task(task.benchmark, task.split, twins[2:], twins), "m")
    store.append(twins[2:], ["a"])
    assert store.known() == {twins[2].id: "a"}


def test_an_answer_is_found_by_either_id(task, tmp_path):
    """POPE's own ids, and LLaVA's numbers once its file is there."""
    numbered = [replace(question, fields={"question_id": 100 + i}) for i, question in enumerate(task.questions)]
    later = Task(task.benchmark, task.split, numbered, numbered)
    for one, other in ((task, later), (later, task)):
        folder = tmp_path / str(one is task)
        store = AnswerStore(folder, one, "m")
        store.append(one.questions, list("abcdefghi"))
        store.merge(store.known())
        problems = Problems()
        if other is later:
            assert list(AnswerStore(folder, other, "m").known().values()) == list("abcdefghi")
            assert len(read_answers(folder / "pope.jsonl", other, problems)) == 9 and not problems
        else:  # what the numbers mean is known no more
            assert AnswerStore(folder, other, "m").known() == {}


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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"question_id": 1, "answer": "cat"}]', "this is one JSON list, as a server takes it"),
        ('{"v1_0": "cat",\n "v1_1": "dog"}', "this is one JSON object, as a server takes it"),
        (
            '{"question_id": 1, "prediction": "A"}\n{"question_id": 2, "prediction": "B"}\n',
            "its answers stand under 'prediction'",
        ),
        (b"PK\x03\x04\x00\xff", "this is a table"),
    ],
)
def test_files_for_servers_are_told_from_answer_files(task, tmp_path, content, told):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = Problems()
    assert read_answers(path, task, problems) == {}
    assert len(problems) == 1 and problems.lines[0].startswith(f"mine.jsonl: {told}") and '"question_id": 17' in str(problems)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_unknown_id_is_told_beside_one_that_is_known(tmp_path, name):
    write_benchmarks(tmp_path, questions=6)
    (task,) = load_tasks(find_tasks(name, tmp_path), tmp_path, progress=False)
    path, problems = tmp_path / "mine.jsonl", Problems()
    write(path, [{"question_id": f"v1_{number}", "text": "a"} for number in (4711, 4712)])
    read_answers(path, task, problems)
    first, second = problems.lines[:2]
    assert "there is no question 'v1_4711'; ids are such as" in first and repr(task.available[0].official_id) in first
    assert second.endswith("there is no question 'v1_4712'")  # told once
