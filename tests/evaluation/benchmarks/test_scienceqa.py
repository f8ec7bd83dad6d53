import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from tests.evaluation.golden import expected, inputs

SCIENCEQA = BENCHMARKS["scienceqa"]
THIRD = "20002"


@pytest.fixture
def content():
    return json.loads(json.dumps(inputs("scienceqa")["problems_json"]))


def write(folder, content, splits=None):
    (folder / "problems.json").write_text(json.dumps(content))
    (folder / "pid_splits.json").write_text(json.dumps(splits or inputs("scienceqa")["pid_splits_json"]))
    (folder / "images/test").mkdir(parents=True, exist_ok=True)
    for id, row in inputs("scienceqa")["problems_json"].items():
        if row["image"]:
            (folder / "images/test" / id).mkdir(exist_ok=True)
            (folder / "images/test" / id / row["image"]).touch()
    return folder


def answers():
    return {row["question_id"]: row["text"] for row in inputs("scienceqa")["predictions_jsonl"]}


def test_questions_are_asked_as_eve_asks_them(content, tmp_path):
    questions = SCIENCEQA.questions(write(tmp_path, content))
    assert [question.id for question in questions] == inputs("scienceqa")["pid_splits_json"]["test"]
    prompts = {row["question_id"]: row["prompt"] for row in inputs("scienceqa")["predictions_jsonl"]}
    for question in questions:
        if question.id in prompts:
            assert prompts[question.id] == "<image>\n" * bool(question.images) + question.prompt
    assert questions[0].images == (tmp_path / "images/test/20000/image.png",) and questions[1].images == ()


def test_answers_are_scored_and_written_for_the_official_tool(content, tmp_path):
    questions = SCIENCEQA.questions(write(tmp_path, content))
    metric = SCIENCEQA.metric(questions)
    metric.update(list(answers()), list(answers().values()))
    wanted = expected("scienceqa")["eve_eval_science_qa"]
    assert metric.compute()["overall"] == pytest.approx(wanted["acc_percent"])
    (path,) = SCIENCEQA.submit(questions, answers(), tmp_path)
    indices = {id: row.get("pred_index", -1) for id, row in wanted["per_item"].items()}
    assert json.loads(path.read_text()) == {"results": {question.id: indices[question.id] for question in questions}}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("choices", None, "question 20002: 'choices' missing"),
        ("choices", ["red"], "question 20002: 'choices' must be 2 to 5 texts"),
        ("choices", ["red", 2, "cat"], "question 20002: 'choices' must be 2 to 5 texts"),
        ("answer", 3, "question 20002: the answer 3 is none of the 3 choices, which count from 0"),
        ("answer", "C", "question 20002: 'answer' is no whole number"),
        ("grade", "third", "question 20002: the grade 'third' is not of the form 'grade7'"),
        ("image", 7, "question 20002: 'image' must be the name of a file, or null"),
        ("image", "other.png", "question 20002: the image .*images/test/20002/other.png is missing"),
        ("hint", None, "question 20002: 'hint' missing"),
    ],
)
def test_a_question_that_cannot_be_used_is_told(content, tmp_path, key, value, message):
    content[THIRD][key] = value
    if value is None:
        del content[THIRD][key]
    with pytest.raises(LitEveError, match=message):
        SCIENCEQA.questions(write(tmp_path, content))
    assert len(SCIENCEQA.questions(tmp_path, allow_partial=True)) == 41


def test_ids_and_files_that_do_not_go_together_are_told(content, tmp_path):
    del content[THIRD]
    with pytest.raises(LitEveError, match="pid_splits.json, test 3: problems.json has no question '20002'"):
        SCIENCEQA.questions(write(tmp_path, content))
    with pytest.raises(ConfigError, match="pid_splits.json is not the official file: it has no list 'test'"):
        SCIENCEQA.questions(write(tmp_path, content, {"minitest": []}))
    with pytest.raises(LitEveError, match=r"pid_splits.json, test 1: problems.json has no question \['20002'\]"):
        SCIENCEQA.questions(write(tmp_path, content, {"test": [["20002"]]}))
