import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.answers import AnswerStore, read_answers
from lit_eve.evaluation.benchmarks import BENCHMARKS, Problems
from lit_eve.evaluation.benchmarks.seedbench import TWICE
from lit_eve.evaluation.tasks import Task
from tests.evaluation.golden import expected, inputs

SEEDBENCH = BENCHMARKS["seedbench"]
ANNOTATIONS = "SEED-Bench.json"


def image_questions():
    """One of the invented questions about images has an id with a letter, which the official ones do not have."""
    questions = inputs("seedbench")["annotations_file"]["questions"]
    return [row for row in questions if row["data_type"] == "image" and row["question_id"].isdecimal()]


@pytest.fixture
def files(tmp_path):
    content = inputs("seedbench")["annotations_file"]
    asked = [row for row in content["questions"] if row["question_id"] != "v700008"]
    (tmp_path / ANNOTATIONS).write_text(json.dumps({**content, "questions": asked}))
    (tmp_path / "SEED-Bench-image").mkdir()
    for row in image_questions():
        (tmp_path / "SEED-Bench-image" / row["data_id"]).touch()
    return tmp_path


def answers_to(questions):
    found = {row["question_id"]: row["text"] for row in inputs("seedbench")["predictions_jsonl"]}
    return {question.id: found.get(question.id, "") for question in questions}


def test_questions_about_images_are_read(files):
    questions = SEEDBENCH.questions(files)
    assert [question.id for question in questions] == [int(row["question_id"]) for row in image_questions()]
    prompts = {row["question_id"]: row["prompt"] for row in inputs("seedbench")["predictions_jsonl"]}
    assert all(question.prompt == prompts.get(question.id, question.prompt) for question in questions)
    first = questions[0]
    assert first.images == (files / "SEED-Bench-image/700000_img",)
    assert first.place == f"{ANNOTATIONS}, entry 1"
    assert first.reference == ("Scene Understanding", "A", "image")


def test_answers_are_scored_and_submitted(files, tmp_path):
    questions = SEEDBENCH.questions(files)
    metric, answers = SEEDBENCH.metric(questions), answers_to(questions)
    metric.update(list(answers), list(answers.values()))
    wanted = expected("seedbench")["eve_seed_strict"]["per_item"]
    assert metric.by_question() == {question.id: wanted[str(question.id)] for question in questions}
    right, total = expected("seedbench")["eve_seed_strict"]["exact"]["image"]
    assert metric.compute()[metric.headline] == pytest.approx(100 * right / (total - 1), abs=1e-9)
    (path,) = SEEDBENCH.submit(questions, answers, tmp_path, "image", files)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"question_id": str(id), "prediction": answer} for id, answer in answers.items()]


def test_answer_files_of_eve_are_read(files, tmp_path):
    questions = SEEDBENCH.questions(files)
    asked = {question.id for question in questions}
    rows = [row for row in inputs("seedbench")["predictions_jsonl"] if row["question_id"] in asked]
    path, problems = tmp_path / "seedbench.jsonl", Problems()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = read_answers(path, Task(SEEDBENCH, "image", questions, questions, Problems()), problems)
    assert answers == {row["question_id"]: row["text"] for row in rows}
    assert problems.lines == ["seedbench.jsonl: 1 of 44 questions have no answer: 700020"]


@pytest.mark.parametrize("same_prompt", [False, True])
def test_the_two_official_questions_of_one_id_are_both_asked_read_and_submitted(files, tmp_path, same_prompt):
    content = json.loads((files / ANNOTATIONS).read_text())
    first, second, *_, last = content["questions"]
    for entry in (first, second):
        entry["question_id"] = str(TWICE)
    if same_prompt:
        second["question"] = first["question"]
    (files / ANNOTATIONS).write_text(json.dumps(content))
    questions = SEEDBENCH.questions(files)
    assert [question.id for question in questions[:3]] == [TWICE, f"{TWICE}#2", 700002]
    task = Task(SEEDBENCH, "image", questions, questions, Problems())
    answers = {question.id: f"answer {place}" for place, question in enumerate(questions)}
    store = AnswerStore(tmp_path / "predictions", task, "m")
    store.append(questions, list(answers.values()))
    assert store.known() == answers
    store.merge(answers)
    assert store.known() == answers
    rows = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert [row["question_id"] for row in rows[:3]] == [TWICE, TWICE, 700002]
    problems = Problems()
    assert read_answers(store.path, task, problems) == answers and not problems
    (path,) = SEEDBENCH.submit(questions, answers, tmp_path, "image", files)
    assert [json.loads(line)["question_id"] for line in path.read_text().splitlines()[:3]] == [str(TWICE)] * 2 + ["700002"]
    with store.path.open("a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    read_answers(store.path, task, problems)
    assert f"question {TWICE} is answered twice, first in seedbench.jsonl, line 1" in str(problems)
    last |= first  # a third one is a fault
    (files / ANNOTATIONS).write_text(json.dumps(content))
    with pytest.raises(LitEveError, match=f"question {TWICE} is there twice, first in .* entry 1"):
        SEEDBENCH.questions(files)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("question_id", None, "entry 3: 'question_id' missing"),
        ("question_id", 700002, "entry 3: 'question_id' is no text"),
        ("question_id", "v7", "entry 3: question_id 'v7' is no number"),
        ("question_id", "700001", "entry 3: question 700001 is there twice, first in .* entry 2"),
        ("data_type", "audio", "entry 3: data_type 'audio' is none of image, video"),
        ("data_id", "none", "entry 3: the image .*SEED-Bench-image/none is missing"),
        ("choice_c", None, "entry 3: 'choice_c' missing"),
        ("choice_c", 3, "entry 3: 'choice_c' is no text"),
        ("answer", "E", "entry 3: answer 'E' is none of A, B, C, D"),
        ("answer", "AB", "entry 3: answer 'AB' is none of A, B, C, D"),
        ("answer", "", "entry 3: answer '' is none of A, B, C, D"),
        ("question_type_id", 13, "entry 3: question_type_id 13 is none of those in 'question_type'"),
        ("question_type_id", "3", "entry 3: 'question_type_id' is no whole number"),
    ],
)
def test_bad_entries_are_named_and_left_out(files, key, value, message):
    content = json.loads((files / ANNOTATIONS).read_text())
    entry = content["questions"][2]
    entry[key] = value
    if value is None:
        del entry[key]
    (files / ANNOTATIONS).write_text(json.dumps(content))
    with pytest.raises(LitEveError, match=f"{ANNOTATIONS}, {message}"):
        SEEDBENCH.questions(files)
    questions, _ = SEEDBENCH.load(files, allow_partial=True)
    assert [question.id for question in questions] == [
        int(row["question_id"]) for row in image_questions() if row["question_id"] != "700002"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it holds no JSON object"),
        ({"questions": []}, "it has no object 'question_type'"),
        ({"question_type": {"Scene Understanding": "1"}, "questions": []}, "it has no object 'question_type'"),
        ({"question_type": {"Scene Understanding": 1}}, "it has no list 'questions'"),
    ],
)
def test_an_altered_file_is_named(files, content, message):
    (files / ANNOTATIONS).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"{ANNOTATIONS} is not the official file: {message}"):
        SEEDBENCH.questions(files)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=f"lacks {ANNOTATIONS} .*SEED-Bench-image .*SEED-Bench-image.zip"):
        SEEDBENCH.questions(tmp_path)
