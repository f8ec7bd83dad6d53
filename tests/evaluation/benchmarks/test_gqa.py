import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from tests.evaluation.golden import expected, inputs

GQA = BENCHMARKS["gqa"]
FILE = "testdev_balanced_questions.json"


@pytest.fixture
def files(tmp_path):
    write(tmp_path, inputs("gqa")["questions_file"])
    (tmp_path / "images").mkdir()
    for row in inputs("gqa")["questions_file"].values():
        (tmp_path / "images" / f"{row['imageId']}.jpg").touch()
    return tmp_path


def write(folder, rows):
    (folder / FILE).write_text(json.dumps(rows))


def answers():
    return {row["question_id"]: row["text"] for row in inputs("gqa")["predictions_jsonl"]}


def test_questions_are_asked_as_eve_asks_them(files):
    questions = GQA.questions(files)
    assert {question.id: question.prompt for question in questions} == {
        row["question_id"]: row["prompt"] for row in inputs("gqa")["predictions_jsonl"]
    }
    assert questions[0].images == (files / "images/n800000.jpg",)
    metric = GQA.metric(questions)
    metric.update(list(answers()), list(answers().values()))
    wanted = expected("gqa")["gqa_eval_on_eve_predictions"]["totals"]
    assert metric.compute()[metric.headline] == pytest.approx(wanted["accuracy"], abs=1e-9)


def test_reasoning_steps_are_those_that_do_more_than_name_a_result(files):
    rows = inputs("gqa")["questions_file"]
    program = [("select", "dog (1)"), ("relate", "cat,left,s (2)"), ("exist", "?"), ("choose name", "a|b"), ("query", "color")]
    program = [{"operation": operation, "dependencies": [], "argument": argument} for operation, argument in program]
    write(files, {**rows, "80000000": {**rows["80000000"], "semantic": program}})
    assert [question.reference.steps for question in GQA.questions(files)[:2]] == [3, 1]


def test_the_prediction_file_is_that_of_eve(files, tmp_path):
    (path,) = GQA.submit(GQA.questions(files), answers(), tmp_path, "testdev", files)
    assert path.name == "testdev_balanced_predictions.json"
    assert json.loads(path.read_text()) == expected("gqa")["eve_predictions_file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "'answer' is no text"),
        ({"isBalanced": "yes"}, "'isBalanced' is no truth value"),
        ({"types": {"structural": "guess", "semantic": "obj"}}, "the structural type 'guess' is none of verify, query"),
        ({"types": {"structural": "query"}}, "the semantic type None is none of attr, cat"),
        ({"groups": {"global": 7}}, "'global' of 'groups' is no text"),
        ({"semantic": ["select"]}, "a step of 'semantic' has no 'operation' and 'argument'"),
        ({"imageId": "n1"}, "the image .*n1.jpg is missing"),
    ],
)
def test_questions_that_cannot_be_used_are_named_and_left_out(files, change, message):
    rows = inputs("gqa")["questions_file"]
    write(files, {**rows, "80000003": {**rows["80000003"], **change}})
    with pytest.raises(LitEveError, match=f"{FILE}, question 80000003: {message}"):
        GQA.questions(files)
    questions, _ = GQA.load(files, allow_partial=True)
    assert [question.id for question in questions] == [id for id in rows if id != "80000003"]


def test_a_file_without_answers_is_told_by_its_questions(files):
    write(files, {id: {"question": row["question"]} for id, row in inputs("gqa")["questions_file"].items()})
    with pytest.raises(LitEveError, match=f"{FILE}, question 80000000: 'answer', 'imageId', .* missing; .* and 25 more"):
        GQA.questions(files)


def test_altered_and_missing_files_are_named(files):
    (files / FILE).write_text("[]")
    with pytest.raises(ConfigError, match=f"{FILE} is not the official file: it holds no JSON object"):
        GQA.questions(files)
    (files / FILE).unlink()
    with pytest.raises(ConfigError, match=f"lacks {FILE} .*download.html"):
        GQA.questions(files)
