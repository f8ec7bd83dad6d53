import json
from pathlib import Path

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from tests.evaluation.golden import expected, inputs

VQAV2 = BENCHMARKS["vqav2"]
VAL = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEST = "v2_OpenEnded_mscoco_test2015_questions.json"
TEST_DEV = "v2_OpenEnded_mscoco_test-dev2015_questions.json"


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def files(tmp_path):
    """The official files; test-dev holds every third question of test."""
    questions, annotations = inputs("vqav2")["questions_file"], inputs("vqav2")["annotations_file"]
    write(tmp_path, VAL, questions)
    write(tmp_path, ANNOTATIONS, annotations)
    write(tmp_path, TEST, questions | {"data_subtype": "test2015"})
    write(tmp_path, TEST_DEV, questions | {"data_subtype": "test-dev2015", "questions": questions["questions"][::3]})
    for images in ("val2014", "test2015"):
        (tmp_path / images).mkdir()
        for question in questions["questions"]:
            (tmp_path / images / f"COCO_{images}_{question['image_id']:012d}.jpg").touch()
    return tmp_path


def changed(folder: Path, name: str, number: int, key: str, value: object) -> None:
    """Change one entry of a file; None takes the key away."""
    content = json.loads((folder / name).read_text())
    entry = content["annotations" if name == ANNOTATIONS else "questions"][number]
    entry[key] = value
    if value is None:
        del entry[key]
    write(folder, name, content)


def raw_answers():
    return {row["question_id"]: row["answer"] for row in inputs("vqav2")["raw_predictions"]}


def test_val_is_read_and_scored(files):
    questions = VQAV2.questions(files, "val")
    first = questions[0]
    assert (first.id, first.place) == (900000, f"{VAL}, entry 1")
    assert first.prompt == "Invented question 0?\nAnswer the question using a single word or phrase."
    assert first.images == (files / "val2014/COCO_val2014_000000090000.jpg",)
    metric, answers = VQAV2.metric(questions), raw_answers()
    metric.update(list(answers), list(answers.values()))
    wanted = expected("vqav2")["official_vqaeval_on_eve_submission"]["totals_percent_12_decimals"]["overall"]
    assert metric.compute()[metric.headline] == pytest.approx(wanted, abs=1e-9)


def test_submission_is_that_of_eve(files, tmp_path):
    for split in ("val", "test"):
        questions = VQAV2.questions(files, split)
        (path,) = VQAV2.submit(questions, raw_answers(), tmp_path, split, files)
        assert json.loads(path.read_text()) == expected("vqav2")["eve_submission"]


def test_submission_of_test_dev_covers_all_of_test(files, tmp_path):
    questions = VQAV2.questions(files)
    assert [question.id for question in questions] == list(raw_answers())[::3]
    assert questions[0].reference is None
    asked = {question.id for question in questions} - {900003}
    (path,) = VQAV2.submit(questions, {id: raw_answers()[id] for id in asked}, tmp_path, "test-dev", files)
    rows = json.loads(path.read_text())
    assert rows == [
        row if row["question_id"] in asked else {**row, "answer": ""} for row in expected("vqav2")["eve_submission"]
    ]
    assert expected("vqav2")["missing_prediction_example"]["submission_entry"] in rows


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        (VAL, "question", None, f"{VAL}, entry 3: 'question' missing"),
        (VAL, "question", 5, f"{VAL}, entry 3: 'question' is no text"),
        (VAL, "question_id", "900002", f"{VAL}, entry 3: 'question_id' is no whole number"),
        (VAL, "question_id", 7, f"{VAL}, entry 3: {ANNOTATIONS} has no answers to question 7"),
        (VAL, "question_id", 900001, f"{VAL}, entry 3: question 900001 is there twice, first in {VAL}, entry 2"),
        (VAL, "image_id", 1, f"{VAL}, entry 3: the image .*COCO_val2014_000000000001.jpg is missing"),
        (ANNOTATIONS, "answers", [{"answer": "cat"}] * 9, f"{ANNOTATIONS}, entry 3: 'answers' must hold 10 .* it has 9"),
        (ANNOTATIONS, "answers", [{"answer": "cat"}] * 10, f"{ANNOTATIONS}, entry 3: answers without an answer_id"),
        (ANNOTATIONS, "answers", [{"answer": 1, "answer_id": i} for i in range(10)], "must hold 10 answers in words; it has 0"),
        (
            ANNOTATIONS,
            "answer_type",
            "colour",
            f"{ANNOTATIONS}, entry 3: answer_type 'colour' is none of yes/no, number, other",
        ),
        (ANNOTATIONS, "question_id", 900001, f"{ANNOTATIONS}, entry 3: question 900001 is annotated twice"),
    ],
)
def test_bad_entries_are_named_and_left_out(files, name, key, value, message):
    changed(files, name, 2, key, value)
    with pytest.raises(LitEveError, match=message):
        VQAV2.questions(files, "val")
    questions, problems = VQAV2.load(files, "val", allow_partial=True)
    assert 900002 not in {question.id for question in questions}
    assert len(questions) == 53
    assert problems


def test_a_question_of_test_dev_that_test_lacks_is_named(files):
    changed(files, TEST_DEV, 1, "question_id", 5)
    with pytest.raises(LitEveError, match=f"{TEST_DEV}, entry 2: question 5 is not in {TEST}"):
        VQAV2.questions(files)


def test_altered_files_are_named(files):
    write(files, VAL, [])
    with pytest.raises(ConfigError, match=f"{VAL} is not the official file: it holds no JSON object"):
        VQAV2.questions(files, "val")
    write(files, VAL, {"items": []})
    with pytest.raises(ConfigError, match=f"{VAL} is not the official file: it has no list 'questions'"):
        VQAV2.questions(files, "val")


def test_files_are_needed_by_split(files):
    for name in (TEST, TEST_DEV):
        (files / name).unlink()
    assert len(VQAV2.questions(files, "val")) == 54
    with pytest.raises(ConfigError, match=f"{TEST_DEV} .*zip.*{TEST} .*zip"):
        VQAV2.questions(files)
