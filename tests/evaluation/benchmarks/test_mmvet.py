from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from pathlib import Path

import pytest
from PIL import Image

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import Question
from lit_eve.evaluation.benchmarks.mmvet import PROMPT, MMVet, grade, judge_message
from lit_eve.evaluation.metrics import MMVetReference
from tests.evaluation.golden import expected, golden, inputs


def write_files(folder: Path, rows: dict[str, dict] | None = None) -> None:
    """The official files, with an image for every question."""
    (folder / "images").mkdir(exist_ok=True)
    for row in inputs("mmvet")["mm_vet_json"].values():
        Image.new("RGB", (8, 8)).save(folder / "images" / row["imagename"])
    (folder / "mm-vet.json").write_text(json.dumps(inputs("mmvet")["mm_vet_json"] if rows is None else rows))


def questions_of(folder: Path) -> list[Question]:
    return MMVet().questions(folder)


def answers_of() -> dict[Hashable, str]:
    return {row["question_id"]: row["text"] for row in inputs("mmvet")["predictions_jsonl"]}


class ScriptedJudge:
    """Gives the replies of the golden file, and keeps what was asked."""

    concurrency = 1

    def __init__(self, questions: list[Question], answers: dict[Hashable, str], runs: int = 1) -> None:
        self.runs = runs
        self.ids = {judge_message(question.reference, answers[question.id]): f"v1_{question.id}" for question in questions}
        self.replies = {
            (id, run): iter(replies)
            for id, runs in inputs("mmvet")["judge_replies"].items()
            for run, replies in enumerate(runs)
        }
        self.calls: list[dict] = []

    def ask(self, message: str, *, temperature: float = 0.0, max_tokens: int | None = None, repetition: int = 0) -> str:
        id = next(id for text, id in self.ids.items() if message.startswith(text))
        self.calls.append(
            {
                "id": id,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "message_tail": message.removeprefix(PROMPT + "\n"),
                "message_sha256": hashlib.sha256(message.encode()).hexdigest(),
            }
        )
        return next(self.replies[id, repetition])


def test_questions_are_asked_as_they_are(tmp_path):
    write_files(tmp_path)
    questions = questions_of(tmp_path)
    rows = inputs("mmvet")["mm_vet_json"]
    assert [f"v1_{question.id}" for question in questions] == list(rows)
    assert [question.prompt for question in questions] == [row["prompt"] for row in inputs("mmvet")["predictions_jsonl"]]
    assert [question.images[0].name for question in questions] == [row["imagename"] for row in rows.values()]
    assert [question.reference.capabilities for question in questions] == [tuple(row["capability"]) for row in rows.values()]


def test_the_prompt_is_the_evaluators():
    assert hashlib.sha256(PROMPT.encode()).hexdigest() == golden("mmvet")["prompt_sha256"]


@pytest.mark.parametrize("runs", [1, 2])
def test_the_judge_is_asked_as_by_the_evaluator(tmp_path, runs):
    write_files(tmp_path)
    questions, answers = questions_of(tmp_path), answers_of()
    judge = ScriptedJudge(questions, answers, runs)
    grades = MMVet().judge(questions, answers, judge)
    wanted = expected("mmvet")[f"mmvet_evaluator_{runs}_run{'s' if runs > 1 else ''}"]
    assert judge.calls == wanted["calls"]
    metric = MMVet().metric(questions, judge)
    metric.update(list(grades), list(grades.values()))
    rated = {id: [row] if runs == 1 else row for id, row in metric.by_question().items()}
    assert {f"v1_{id}": row for id, row in rated.items()} == {id: row["score"] for id, row in wanted["grades"].items()}
    assert round(metric.compute()["total"], 1) == wanted["capability_scores"]["total"]


@pytest.mark.parametrize(
    ("replies", "wanted"), [(["nan", "0.5"], 0.5), (["1e-1"], 0.1), (["", "1"], 1.0), (["no"] * 5 + ["1"], 0.0)]
)
def test_what_counts_as_a_grade(replies, wanted):
    class Script:
        concurrency = 1

        def ask(self, message, **kwargs):
            return replies.pop(0)

    assert grade(Script(), MMVetReference("?", "a", ("rec",)), "b") == wanted
    assert replies == []


def test_the_file_of_answers_is_eves(tmp_path):
    write_files(tmp_path)
    [path] = MMVet().submit(questions_of(tmp_path), answers_of(), tmp_path, "test", tmp_path)
    assert json.loads(path.read_text()) == expected("mmvet")["eve_result_file"]


def test_only_what_was_answered_is_graded_and_handed_in(tmp_path):
    write_files(tmp_path)
    questions, answers = questions_of(tmp_path), answers_of()
    few = {id: answers[id] for id in list(answers)[:3]}
    assert list(MMVet().judge(questions, few, ScriptedJudge(questions, answers))) == list(few)
    [path] = MMVet().submit(questions, few, tmp_path, "test", tmp_path)
    assert json.loads(path.read_text()).keys() == {f"v1_{id}" for id in few}


def test_bad_rows_are_named(tmp_path):
    good = inputs("mmvet")["mm_vet_json"]["v1_1000"]
    rows = {
        "v1_1": good,
        "7": good,
        "v1_2": {name: good[name] for name in ("imagename", "question")},
        "v1_3": {**good, "capability": ["rec", "smell"]},
        "v1_4": {**good, "answer": 5},
        "v1_5": {**good, "capability": "rec"},
        "v1_6": {**good, "imagename": "elsewhere.png"},
    }
    write_files(tmp_path, rows)
    questions, problems = MMVet().load(tmp_path, allow_partial=True)
    assert [question.id for question in questions] == [1]
    assert problems.lines == [
        "mm-vet.json, 7: the ids of questions are v1_0, v1_1 and so on",
        "mm-vet.json, v1_2: 'answer', 'capability' missing",
        "mm-vet.json, v1_3: unknown capability 'smell'; there are rec, ocr, know, gen, spat, math",
        "mm-vet.json, v1_4: 'answer' is no text",
        "mm-vet.json, v1_5: 'capability' is no list",
        f"mm-vet.json, v1_6: the image {tmp_path / 'images' / 'elsewhere.png'} is missing",
    ]
    with pytest.raises(LitEveError, match="MM-Vet: mm-vet.json, 7: the ids"):
        MMVet().questions(tmp_path)


def test_missing_and_altered_files(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks mm-vet.json \(of mm-vet.zip, 67 MB, https://.*\); images"):
        questions_of(tmp_path)
    write_files(tmp_path)
    (tmp_path / "mm-vet.json").write_text("[]")
    with pytest.raises(ConfigError, match="mm-vet.json is not the official file: it holds no JSON object"):
        questions_of(tmp_path)
