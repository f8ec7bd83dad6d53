import pytest

from lit_eve.evaluation.metrics import TextVQA
from tests.evaluation.golden import expected, inputs


def case():
    """A metric, and the ids and answers to rate; answers are in the order of the annotations."""
    rows = inputs("textvqa")["annotations_file"]["data"]
    references = {row["question_id"]: tuple(row["answers"]) for row in rows}
    return TextVQA(references), list(references), [row["text"] for row in inputs("textvqa")["predictions_jsonl"]]


@pytest.mark.parametrize("scorer", ["eve_textvqa", "lmms_eval"])
def test_every_question_and_the_total_are_those_of_the_scorer(scorer):
    metric, ids, answers = case()
    metric.update(ids, answers)
    wanted = expected("textvqa")[scorer]
    points = {str(id): value / 100 for id, value in metric.by_question().items()}
    assert points == pytest.approx(wanted["per_item"], abs=1e-9)
    assert metric.compute()["overall"] / 100 == pytest.approx(wanted["total"], abs=1e-9)


def test_printed_score():
    metric, ids, answers = case()
    metric.update(ids, answers)
    assert f"{metric.compute()['overall']:.2f}" == expected("textvqa")["eve_textvqa"]["printed_accuracy_percent"]


def test_questions_without_an_answer_are_not_noticed():
    metric, ids, answers = case()
    metric.update(ids[:2], answers[:2])
    assert metric.compute()["overall"] == 100
