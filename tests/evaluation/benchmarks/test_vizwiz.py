import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from tests.evaluation.golden import expected, inputs

VIZWIZ = BENCHMARKS["vizwiz"]


@pytest.fixture
def files(tmp_path):
    """The official files; test has the images of val by another name."""
    rows = inputs("vizwiz")["annotations_file"]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    asked = [{"image": row["image"].replace("val", "test"), "question": row["question"]} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps(asked))
    for split, names in (("val", rows), ("test", asked)):
        (tmp_path / split).mkdir()
        for row in names:
            (tmp_path / split / row["image"]).touch()
    return tmp_path


def answers_by_image():
    images = {row["question_id"]: row["image"] for row in inputs("vizwiz")["questions_jsonl"]}
    return {images[row["question_id"]]: row["text"] for row in inputs("vizwiz")["predictions_jsonl"]}


def test_val_is_asked_as_llava_does_and_scored(files):
    questions = VIZWIZ.questions(files, "val")
    for question, row in zip(questions, inputs("vizwiz")["questions_jsonl"], strict=True):
        assert (question.id, question.prompt, question.fields["question_id"]) == (row["image"], row["text"], row["question_id"])
        assert question.images == (files / "val" / row["image"],)
    metric, answers = VIZWIZ.metric(questions), answers_by_image()
    metric.update(list(answers), list(answers.values()))
    wanted = expected("vizwiz")["vizwiz_api_on_eve_submission"]["totals_percent_12_decimals"]["overall"]
    assert metric.compute()[metric.headline] == pytest.approx(wanted, abs=1e-9)


def test_only_the_first_letter_of_a_question_is_large(files):
    rows = json.loads((files / "test.json").read_text())
    rows[0]["question"] = "what is this? And do I bake it? "
    (files / "test.json").write_text(json.dumps(rows))
    first = VIZWIZ.questions(files)[0]
    assert first.prompt.split("\n") == [
        "What is this? and do i bake it? ",
        "When the provided information is insufficient, respond with 'Unanswerable'.",
        "Answer the question using a single word or phrase.",
    ]
    assert first.reference is None


def test_submission_is_that_of_eve(files, tmp_path):
    (path,) = VIZWIZ.submit(VIZWIZ.questions(files, "val"), answers_by_image(), tmp_path, "val", files)
    assert json.loads(path.read_text()) == expected("vizwiz")["eve_submission"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("question", None, "val.json, entry 3: 'question' missing"),
        ("answers", [{"answer": "a"}] * 11, "val.json, entry 3: 'answers' must hold 10 answers in words; it has 11"),
        ("answers", "soup", "val.json, entry 3: 'answers' is no list"),
        ("answer_type", "colour", "entry 3: answer_type 'colour' is none of yes/no, number, other, unanswerable"),
        ("image", "none.jpg", "val.json, entry 3: the image .*none.jpg is missing"),
    ],
)
def test_bad_entries_are_named_and_left_out(files, key, value, message):
    rows = json.loads((files / "val.json").read_text())
    rows[2][key] = value
    if value is None:
        del rows[2][key]
    (files / "val.json").write_text(json.dumps(rows))
    with pytest.raises(LitEveError, match=message):
        VIZWIZ.questions(files, "val")
    questions, problems = VIZWIZ.load(files, "val", allow_partial=True)
    assert (len(questions), len(problems)) == (57, 1)
    assert questions[2].fields["question_id"] == 3  # the others keep their numbers


def test_an_altered_file_is_named(files):
    (files / "test.json").write_text("{}")
    with pytest.raises(ConfigError, match="test.json is not the official file: it holds no JSON list"):
        VIZWIZ.questions(files)
