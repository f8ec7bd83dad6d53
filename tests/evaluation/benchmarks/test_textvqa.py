import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.benchmarks.textvqa import question_of
from tests.evaluation.golden import expected, inputs

TEXTVQA = BENCHMARKS["textvqa"]
ANNOTATIONS = "TextVQA_0.5.1_val.json"
PROMPTS = "llava_textvqa_val_v051_ocr.jsonl"


@pytest.fixture
def files(tmp_path):
    """The official files, with the prompts of the answers."""
    (tmp_path / ANNOTATIONS).write_text(json.dumps(inputs("textvqa")["annotations_file"]))
    write_prompts(
        tmp_path,
        [
            {
                "question_id": row["question_id"],
                "image": f"{row['question_id']}.jpg",
                "text": row["prompt"],
                "category": "default",
            }
            for row in inputs("textvqa")["predictions_jsonl"]
        ],
    )
    (tmp_path / "train_images").mkdir()
    for row in inputs("textvqa")["predictions_jsonl"]:
        (tmp_path / "train_images" / f"{row['question_id']}.jpg").touch()
    return tmp_path


def write_prompts(folder, rows):
    (folder / PROMPTS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_prompts(folder):
    return [json.loads(line) for line in (folder / PROMPTS).read_text().splitlines()]


def test_prompts_of_all_layouts_find_their_annotation(files):
    questions = TEXTVQA.questions(files)
    rows = inputs("textvqa")["predictions_jsonl"]
    assert [question.id for question in questions] == list(range(34000, 34054))
    assert [question.prompt for question in questions] == [row["prompt"] for row in rows]
    assert [question.fields["question_id"] for question in questions] == [row["question_id"] for row in rows]
    assert questions[0].images == (files / "train_images/0000000000abc000.jpg",)
    metric = TEXTVQA.metric(questions)
    metric.update([question.id for question in questions], [row["text"] for row in rows])
    assert metric.compute()[metric.headline] / 100 == pytest.approx(expected("textvqa")["eve_textvqa"]["total"], abs=1e-9)


def test_a_question_that_is_annotated_twice_has_the_last_answers(files):
    content = json.loads((files / ANNOTATIONS).read_text())
    twin = {**content["data"][0], "question_id": 1, "answers": ["last"] * 10}
    content["data"].append(twin)
    (files / ANNOTATIONS).write_text(json.dumps(content))
    rows = read_prompts(files)
    write_prompts(files, [*rows, rows[0]])
    questions = {question.id: question for question in TEXTVQA.questions(files)}
    assert questions[34000].reference == questions[1].reference == ("last",) * 10


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What is it?\nReference OCR token: A, B\nAnswer.", "What is it?"),
        ("Reference OCR token: A, B\nWhat is it?\nAnswer.", "What is it?"),
        ("OCR tokens: A B. Question: What is it? Short answer:", "What is it?"),
        ("What is it?\nAnswer.", "What is it?"),
        ("What is it?", None),
        ("What is it?\nReference OCR token: A\nB\nAnswer.", None),
        ("OCR tokens: A B. What is it?", None),
    ],
)
def test_layouts(prompt, question):
    assert question_of(prompt) == question


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("text", None, f"{PROMPTS}, line 3: 'text' missing"),
        ("question_id", 5, f"{PROMPTS}, line 3: 'question_id' is no text"),
        ("text", "What?", f"{PROMPTS}, line 3: the prompt has none of the known layouts"),
        ("text", "What?\nAnswer.", f"{PROMPTS}, line 3: {ANNOTATIONS} has no such question about .*abc000: What[?]"),
        ("image", "none.jpg", f"{PROMPTS}, line 3: the image .*none.jpg is missing"),
    ],
)
def test_bad_lines_are_named_and_left_out(files, key, value, message):
    rows = read_prompts(files)
    rows[2][key] = value
    if value is None:
        del rows[2][key]
    write_prompts(files, rows)
    with pytest.raises(LitEveError, match=message):
        TEXTVQA.questions(files)
    questions, _ = TEXTVQA.load(files, allow_partial=True)
    assert [question.id for question in questions] == [34000, 34001, *range(34003, 34054)]


def test_a_malformed_line_and_an_annotation_without_a_prompt_are_named(files):
    lines = (files / PROMPTS).read_text().splitlines(keepends=True)
    (files / PROMPTS).write_text("".join([*lines[:2], lines[2][:30] + "\n", *lines[3:]]))
    with pytest.raises(
        LitEveError, match=rf"{PROMPTS}, line 3: no JSON .*{ANNOTATIONS}, entry 3: .* no prompt for question 34002"
    ):
        TEXTVQA.questions(files)


def test_an_annotation_without_ten_answers_is_named(files):
    content = json.loads((files / ANNOTATIONS).read_text())
    content["data"][4]["answers"].pop()
    (files / ANNOTATIONS).write_text(json.dumps(content))
    with pytest.raises(LitEveError, match=f"{ANNOTATIONS}, entry 5: 'answers' must hold 10 answers in words; it has 9"):
        TEXTVQA.questions(files)


def test_an_altered_file_is_named(files):
    (files / ANNOTATIONS).write_text('{"annotations": []}')
    with pytest.raises(ConfigError, match=f"{ANNOTATIONS} is not the official file: it has no list 'data'"):
        TEXTVQA.questions(files)
