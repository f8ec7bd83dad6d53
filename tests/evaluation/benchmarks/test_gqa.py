import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from tests.evaluation.golden import expected, inputs

GQA = BENCHMARKS["gqa"]
QUESTIONS = "testdev_balanced_questions.json"
THIRD = "80000002"


@pytest.fixture
def content():
    return json.loads(json.dumps(inputs("gqa")["questions_file"]))


def write(folder, content):
    (folder / QUESTIONS).write_text(json.dumps(content))
    (folder / "images").mkdir(exist_ok=True)
    for row in inputs("gqa")["questions_file"].values():
        (folder / "images" / f"{row['imageId']}.jpg").touch()
    return folder


def test_questions_are_read(content, tmp_path):
    questions = GQA.questions(write(tmp_path, content))
    assert [question.id for question in questions] == list(content)
    prompts = {row["question_id"]: row["prompt"] for row in inputs("gqa")["predictions_jsonl"]}
    assert {question.id: question.prompt for question in questions} == prompts
    assert questions[0].images == (tmp_path / "images/n800000.jpg",)
    assert questions[0].place == f"{QUESTIONS}, question 80000000"


def test_answers_are_scored_and_written_for_the_official_script(content, tmp_path):
    questions = GQA.questions(write(tmp_path, content))
    answers = {row["question_id"]: row["text"] for row in inputs("gqa")["predictions_jsonl"]}
    metric = GQA.metric(questions)
    metric.update(list(answers), list(answers.values()))
    wanted = expected("gqa")["gqa_eval_on_eve_predictions"]["totals"]
    scores = metric.compute()
    assert {name: scores[name] for name in ("accuracy", "distribution")} == pytest.approx(
        {name: wanted[name] for name in ("accuracy", "distribution")}
    )
    (path,) = GQA.submit(questions, answers, tmp_path)
    assert path.name == "testdev_balanced_predictions.json"
    assert json.loads(path.read_text()) == expected("gqa")["eve_predictions_file"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("answer", None, "question 80000002: 'answer' missing"),
        ("question", 3, "question 80000002: 'question' is no text"),
        ("isBalanced", "yes", "question 80000002: 'isBalanced' is no true or false"),
        ("types", {"structural": "query"}, "question 80000002: .* not as in the official file .'semantic'"),
        ("groups", {"global": ["dog"]}, "question 80000002: .* not as in the official file .unhashable type: 'list'"),
        ("groups", {}, "question 80000002: .* not as in the official file .'global'"),
        ("semantic", [{"operation": "select"}], "question 80000002: .* not as in the official file .'argument'"),
        ("imageId", "n0", "question 80000002: the image .*images/n0.jpg is missing"),
    ],
)
def test_a_question_that_cannot_be_used_is_told(content, tmp_path, key, value, message):
    content[THIRD][key] = value
    if value is None:
        del content[THIRD][key]
    with pytest.raises(LitEveError, match=message):
        GQA.questions(write(tmp_path, content))
    assert len(GQA.questions(tmp_path, allow_partial=True)) == len(content) - 1


def test_another_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=f"{QUESTIONS} is not the official file: it holds no JSON object"):
        GQA.questions(write(tmp_path, []))
