import json

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.answers import AnswerStore
from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.tasks import find_tasks, load_tasks
from tests.evaluation.golden import expected, inputs

SCIENCEQA = BENCHMARKS["scienceqa"]
IDS = inputs("scienceqa")["pid_splits_json"]["test"]
LETTER_SENTENCE = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture
def files(tmp_path):
    write(tmp_path, inputs("scienceqa")["problems_json"])
    (tmp_path / "pid_splits.json").write_text(json.dumps(inputs("scienceqa")["pid_splits_json"]))
    for split, ids in inputs("scienceqa")["pid_splits_json"].items():
        for id in ids:
            (tmp_path / "images" / split / id).mkdir(parents=True)
            if inputs("scienceqa")["problems_json"][id]["image"]:
                (tmp_path / "images" / split / id / "image.png").touch()
    return tmp_path


def write(folder, rows):
    (folder / "problems.json").write_text(json.dumps(rows))


def changed(id, **change):
    rows = inputs("scienceqa")["problems_json"]
    return {**rows, id: {**rows[id], **change}}


def answers():
    return {row["question_id"]: row["text"] for row in inputs("scienceqa")["predictions_jsonl"]}


def test_all_questions_of_test_are_asked_as_eve_asks_them(files):
    questions = SCIENCEQA.questions(files)
    assert [question.id for question in questions] == IDS
    recorded = {question.id: question.fields.get("prompt", question.prompt) for question in questions}
    prompts = {row["question_id"]: row["prompt"] for row in inputs("scienceqa")["predictions_jsonl"]}
    assert {id: recorded[id] for id in prompts} == prompts
    assert not any("<image>" in question.prompt for question in questions)  # the chat template puts it in
    assert questions[0].images == (files / "images/test/20000/image.png",)
    assert questions[1].images == ()
    metric = SCIENCEQA.metric(questions)
    metric.update(list(answers()), list(answers().values()))
    wanted = expected("scienceqa")["eve_eval_science_qa"]["img"]
    assert metric.compute()[metric.headline] == pytest.approx(100 * wanted["correct"] / wanted["count"], abs=1e-9)


def test_blanks_of_prompts_are_those_of_llava(files):
    """One pass that makes two blanks one, and none around the context and the whole (convert_sqa_to_llava_base_prompt.py)."""
    write(files, changed("20000", hint=" The  is white. ", question="What   is it? ", choices=["a ", "b "]))
    assert SCIENCEQA.questions(files)[0].prompt == f"Context: The is white.\nWhat  is it? \nA. a \nB. b{LETTER_SENTENCE}"


def test_the_result_file_is_read_by_the_official_tool(files, tmp_path):
    (path,) = SCIENCEQA.submit(SCIENCEQA.questions(files), answers(), tmp_path, "test", files)
    content, wanted = json.loads(path.read_text()), expected("scienceqa")["eve_eval_science_qa"]
    assert content["results"] == {id: item["pred_index"] for id, item in wanted["per_item"].items()}
    assert content["outputs"] == {id: answers().get(id, "FAILED") for id in IDS}
    assert (content["correct"], content["count"]) == (wanted["correct"], wanted["count"])
    assert content["acc"] == pytest.approx(wanted["acc_percent"], abs=1e-9)


def test_recorded_prompts_tell_the_image_and_their_answers_are_found_again(files, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "scienceqa").symlink_to(files)
    (task,) = load_tasks(find_tasks("scienceqa", data), data, progress=False)
    store = AnswerStore(tmp_path / "predictions", task, "m")
    store.append(task.questions[:2], ["A", "B"])
    assert store.known() == {"20000": "A", "20001": "B"}
    store.merge(store.known())
    rows = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert [row["prompt"].startswith("<image>\n") for row in rows] == [True, False]
    assert [sample.images for sample in task.samples()[:2]] == [question.images for question in task.questions[:2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hint": None}, "'hint' is no text"),
        ({"answer": "B"}, "'answer' is no whole number"),
        ({"answer": 3}, "'answer' is 3, but there are 3 choices, counted from 0"),
        ({"answer": -1}, "'answer' is -1, but there are 3 choices"),
        ({"choices": ["red"]}, "'choices' must hold 2 to 5 texts"),
        ({"choices": ["red", 2, 3]}, "'choices' must hold 2 to 5 texts"),
        ({"subject": "art"}, "the subject 'art' is none of natural science, social science, language science"),
        ({"grade": "grade13"}, "the grade 'grade13' is none of grade1 to grade12"),
        ({"image": 1}, "'image' is neither the name of a file nor null"),
        ({"image": "other.png"}, "the image .*20002/other.png is missing"),
    ],
)
def test_questions_that_cannot_be_used_are_named_and_left_out(files, change, message):
    write(files, changed("20002", **change))
    with pytest.raises(LitEveError, match=f"problems.json, question 20002: {message}"):
        SCIENCEQA.questions(files)
    questions, _ = SCIENCEQA.load(files, allow_partial=True)
    assert [question.id for question in questions] == [id for id in IDS if id != "20002"]


def test_a_split_with_unknown_or_repeated_ids_is_told(files):
    (files / "pid_splits.json").write_text(json.dumps({"test": [*IDS, "7", IDS[0]]}))
    with pytest.raises(
        LitEveError,
        match=r"pid_splits.json, test, entry 43: problems.json has no question '7'; .*question '20000' is there twice",
    ):
        SCIENCEQA.questions(files)


def test_altered_files_are_named(files):
    (files / "pid_splits.json").write_text(json.dumps({"minitest": IDS}))
    with pytest.raises(ConfigError, match="pid_splits.json is not the official file: it has no list 'test'"):
        SCIENCEQA.questions(files)
    write(files, [])
    with pytest.raises(ConfigError, match="problems.json is not the official file: it holds no JSON object"):
        SCIENCEQA.questions(files)
