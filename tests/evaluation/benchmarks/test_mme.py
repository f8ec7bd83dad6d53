import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.answers import read_answers, record
from lit_eve.evaluation.benchmarks import BENCHMARKS, Problems
from lit_eve.evaluation.metrics.mme import COGNITION, PERCEPTION
from lit_eve.evaluation.tasks import Task, subset
from tests.evaluation.golden import expected, inputs

MME = BENCHMARKS["mme"]
RELEASE = "MME_Benchmark_release_version"
NESTED = ("posters", "celebrity", "scene", "landmark", "artwork")
SHORT = "\nAnswer the question using a single word or phrase."


def write_image(root, task, name, pairs, suffix=".jpg"):
    nested = task in NESTED
    texts, images = (root / task / ("questions_answers_YN" if nested else ""), root / task / ("images" if nested else ""))
    for folder in (texts, images):
        folder.mkdir(parents=True, exist_ok=True)
    (texts / f"{name}.txt").write_text("".join(f"{question}\t{label}\n" for question, label in pairs))
    (images / f"{name}{suffix}").touch()


@pytest.fixture
def files(tmp_path):
    """The official folders, with the questions of the result files."""
    for task, rows in inputs("mme")["result_files"].items():
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            write_image(tmp_path / RELEASE, task, first[0].removesuffix(".jpg"), [first[1:3], second[1:3]])
    return tmp_path


def test_both_layouts_are_read_and_scored(files):
    questions = MME.questions(files, "all")
    rows = [row for rows in inputs("mme")["result_files"].values() for row in rows]
    assert len(questions) == len(rows)
    by_id = {question.id: question for question in questions}
    flat, nested = by_id["existence/exi0000.jpg#1"], by_id["posters/images/pos0000.jpg#2"]
    assert flat.prompt == "Is this an invented existence question 0 Yes?" + SHORT
    assert (flat.images, flat.place) == ((files / RELEASE / "existence/exi0000.jpg",), "existence/exi0000.txt, line 1")
    assert nested.images == (files / RELEASE / "posters/images/pos0000.jpg",)
    assert nested.place == "posters/pos0000.txt, line 2"
    assert (nested.fields["question_id"], nested.group) == ("posters/images/pos0000.jpg",) * 2
    metric = MME.metric(questions)
    metric.update([question.id for question in questions], [row[3] for row in rows])
    scores, wanted = metric.compute(), expected("mme")["mme_eval_tool"]["scores"]
    assert scores[metric.headline] == pytest.approx(wanted["Perception"]["total"], abs=1e-9)
    assert scores["cognition"] == pytest.approx(wanted["Cognition"]["total"], abs=1e-9)


def test_perception_asks_ten_tasks(files):
    questions = MME.questions(files)
    assert len({question.reference.task for question in questions}) == 10
    assert len(questions) == len(MME.questions(files, "all")) - 8


def test_the_folder_of_the_zip_is_known(files):
    inner = files / "inner"
    (files / RELEASE).rename(inner)
    (files / RELEASE).mkdir()
    inner.rename(files / RELEASE / "MME_Benchmark")
    questions = MME.questions(files)
    assert questions[0].images[0] == files / RELEASE / "MME_Benchmark/existence/exi0000.jpg"
    assert questions[0].fields["question_id"] == "existence/exi0000.jpg"


@pytest.fixture
def example(files):
    """The questions of the conversion example in place of those of their tasks, and its answers."""
    content = inputs("mme")["conversion_example"]
    for task in ("existence", "posters"):
        for path in (files / RELEASE / task).rglob("*.*"):
            path.unlink()
    for path, pairs in content["ground_truth_files"].items():
        write_image(files / RELEASE, path.split("/")[0], path.split("/")[-1].removesuffix(".txt"), pairs)
    questions = [question for question in MME.questions(files) if question.reference.task in ("existence", "posters")]
    answers = [row["text"] for row in content["predictions_jsonl"]]
    return questions, {question.id: answer for question, answer in zip(questions, answers, strict=True)}


def test_submission_is_that_of_the_converter(example, tmp_path):
    paths = MME.submit(*example, tmp_path, "perception", tmp_path)
    written = {path.name: path.read_bytes().decode() for path in paths}
    assert written == expected("mme")["conversion_example_output_files"]


def test_tabs_and_line_breaks_do_not_break_the_submission(example, tmp_path):
    questions, answers = example
    answers[questions[0].id] = "Yes\r\nit\tis"
    first = MME.submit(questions, answers, tmp_path, "perception", tmp_path)[0].read_bytes().decode().split("\n")[0]
    assert first == "e1.txt\tIs there a kite? Please answer yes or no.\tYes\tYes  it is"


def test_an_image_with_one_answer_is_not_submitted(example, tmp_path):
    questions, answers = example
    few = {question.id: answers[question.id] for question in questions[1:]}
    (path,) = MME.submit(questions, few, tmp_path, "perception", tmp_path)
    assert path.read_text() == expected("mme")["conversion_example_output_files"]["posters.txt"]


def test_prompts_are_those_of_llava(example):
    prompts = [row["prompt"] for row in inputs("mme")["conversion_example"]["predictions_jsonl"]]
    assert [question.prompt for question in example[0]][:3] == prompts[:3]


def test_ids_fit_the_converter_and_answer_files_hold_the_official_ones(files, tmp_path):
    questions = MME.questions(files, "all")
    assert len({question.id for question in questions}) == len(questions)
    for question in questions:
        task, name = question.id.split("/")[0], question.id.split("/")[-1].split(".")[0]
        assert (task, f"{task}/{name}.txt") == (question.reference.task, question.place.split(",")[0])
    path = tmp_path / "mme.jsonl"
    path.write_text("".join(json.dumps(record(question, question.id, "m")) + "\n" for question in questions))
    task, problems = Task(MME, "all", questions, questions, Problems()), Problems()
    assert read_answers(path, task, problems) == {question.id: question.id for question in questions}
    assert not problems


def test_a_subset_keeps_the_two_questions_of_an_image(files):
    chosen = subset(MME.questions(files), 10)
    groups = [question.group for question in chosen]
    assert len(chosen) == 10 and all(groups.count(group) == 2 for group in groups)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it?\tYes\nIs it not?\n", "color/col0001.txt, line 2: not a question, a tab, and Yes or No: 'Is it not[?]'"),
        ("Is it?\tYes\nIs it not?\tMaybe\n", "color/col0001.txt, line 2: not a question, a tab, and Yes or No"),
        ("Is it?\tYes\nIs\tit not?\tNo\n", "color/col0001.txt, line 2: not a question, a tab, and Yes or No"),
        ("Is it?\tYes\n?\nIs it not?\tNo\n", "color/col0001.txt, line 2: not a question, a tab, and Yes or No: '[?]'$"),
        ("Is it?\tYes\n", "color/col0001.txt: there must be two questions about an image, not 1"),
        ("", "color/col0001.txt: there must be two questions about an image, not 0"),
        ("Is it?\tYes\n" * 3, "color/col0001.txt: there must be two questions about an image, not 3"),
        (b"\xff\xfe", "color/col0001.txt: no text in UTF-8"),
        (None, "color/col0001.txt, line 1: the image .*col0001.jpg is missing; color/col0001.txt, line 2: the image"),
    ],
)
def test_bad_files_are_named_and_both_questions_left_out(files, text, message):
    path = files / RELEASE / "color/col0001.txt"
    if text is None:
        path.with_suffix(".jpg").unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LitEveError, match=message):
        MME.questions(files)
    questions, _ = MME.load(files, allow_partial=True)
    assert [question.group for question in questions if question.reference.task == "color"] == [
        name for name in ("color/col0000.jpg", "color/col0002.jpg") for _ in range(2)
    ]


def test_blank_lines_line_ends_of_windows_and_other_images_are_read(files):
    path = files / RELEASE / "color/col0001.txt"
    path.write_bytes(b"\xef\xbb\xbfIs it red? Please answer yes or no.\tyes \r\n\r\nIs it blue?  Please answer yes or no.\tNO")
    path.with_suffix(".jpg").rename(path.with_suffix(".PNG"))
    first, second = (question for question in MME.questions(files) if question.group == "color/col0001.PNG")
    assert (first.prompt, first.reference.label) == (f"Is it red?{SHORT}", "yes")
    assert (second.prompt, second.reference.label) == (f"Is it blue?{SHORT}", "no")


def test_folders_that_are_missing_or_empty_are_named(files, tmp_path):
    with pytest.raises(ConfigError, match=f"lacks {RELEASE} .*https://"):
        MME.questions(tmp_path / "nothing")
    for path in (files / RELEASE / "scene").rglob("*.txt"):
        path.unlink()
    with pytest.raises(LitEveError, match="scene/questions_answers_YN: there are no files with questions"):
        MME.questions(files)
    (files / RELEASE / "OCR").rename(files / "gone")
    (files / RELEASE / "code_reasoning").rename(files / "gone too")
    with pytest.raises(ConfigError, match=f"{RELEASE} lacks the folders of tasks OCR [(]https"):
        MME.questions(files)
    with pytest.raises(ConfigError, match="lacks the folders of tasks OCR, code_reasoning"):
        MME.questions(files, "all")


def test_tasks_that_a_sum_lacks_are_told(files):
    questions = MME.questions(files, "all")

    def notes(*tasks: str) -> list[str]:
        metric = MME.metric([question for question in questions if question.reference.task in tasks])
        metric.update(list(metric.references), ["Yes"] * len(metric.references))
        return MME.notes(metric.compute())

    assert notes(*PERCEPTION) == notes(*PERCEPTION, *COGNITION) == []
    assert notes(*PERCEPTION[2:9], *COGNITION[1:]) == ["the sum lacks existence, count, OCR, commonsense_reasoning"]
    (told,) = notes("scene")
    assert "existence" in told and "commonsense_reasoning" not in told  # which nobody asked for
