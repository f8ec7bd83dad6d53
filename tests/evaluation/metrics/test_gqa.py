import math

import pytest

from lit_eve.evaluation.benchmarks import Problems
from lit_eve.evaluation.benchmarks.gqa import reference_of
from lit_eve.evaluation.metrics import GQA, GQAReference
from tests.evaluation.golden import expected, inputs

EVE = "gqa_eval_on_eve_predictions"


def case(rules="eve"):
    """A metric, and the ids and answers to rate."""
    rows = inputs("gqa")["questions_file"]
    answers = {row["question_id"]: row["text"] for row in inputs("gqa")["predictions_jsonl"]}
    return (
        GQA({id: reference_of(row, id, Problems()) for id, row in rows.items()}, rules),
        list(answers),
        list(answers.values()),
    )


def scored(rules="eve"):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


def test_every_question_is_rated_as_officially():
    wanted = expected("gqa")[EVE]["per_item"]
    rated = {id: right for id, (right, _) in scored().by_question().items()}
    assert {id: rated[id] for id in wanted} == wanted
    assert set(rated) - set(wanted) == {"80000005"}  # it is not balanced, so that the script passes it over


@pytest.mark.parametrize("name", ["accuracy", "open", "binary", "distribution"])
def test_totals_are_official(name):
    assert scored().compute()[name] == pytest.approx(expected("gqa")[EVE]["totals"][name], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "official"),
    [("structural", "StructuralType"), ("semantic", "SemanticType"), ("steps", "Steps"), ("words", "Length")],
)
def test_breakdowns_are_official(name, official):
    scores = scored().compute()
    found = {key.split("/")[1]: score for key, score in scores.items() if key.startswith(f"{name}/")}
    wanted = expected("gqa")[EVE]["details"][f"accuracyPer{official}"]
    assert found == pytest.approx({category: score for category, (score, _) in wanted.items()}, abs=1e-9)


def test_lmms_eval_leaves_out_punctuation_and_counts_all_questions():
    metric, wanted = scored("lmms_eval"), expected("gqa")["lmms_eval_exact_match"]
    assert {id: right for id, (right, _) in metric.by_question().items()} == wanted["per_item"]
    assert metric.compute()["accuracy"] / 100 == pytest.approx(wanted["total"], abs=1e-9)


def test_a_question_without_an_answer_is_wrong():
    metric, ids, answers = case()
    metric.update(ids[:3], answers[:3])
    assert metric.compute()["accuracy"] == pytest.approx(100 * 3 / 29)


def test_full_stops_are_taken_from_the_end_alone():
    metric = GQA({number: GQAReference("left", "query", "rel", 1, 4, None) for number in range(3)})
    metric.update(range(3), ["Left..", ".left", "left. "])
    assert list(metric.by_question().values()) == [[1, -1], [0, -1], [0, -1]]


def test_distribution_counts_right_answers_of_a_group_only():
    references = {number: GQAReference(answer, "query", "obj", 1, 4, "animal") for number, answer in enumerate("aaab")}
    metric = GQA({**references, 4: GQAReference("c", "query", "obj", 1, 4, "other")})
    metric.update(range(5), ["b", "a", "a", "x", "c"])  # of the first group: a twice instead of 3 times, b once; x is no answer
    assert metric.compute()["distribution"] == pytest.approx((4 * (1 / 3) + 1 * 0) / 5 / 100)


def test_distribution_takes_no_answer_for_none_given():
    metric = GQA({number: GQAReference("a", "query", "obj", 1, 4, "animal") for number in range(4)})
    metric.update([0], ["a"])
    assert metric.compute()["distribution"] == pytest.approx((1 - 4) ** 2 / 4 / 100)


def test_without_groups_there_is_no_distribution():
    metric = GQA({1: GQAReference("yes", "verify", "obj", 1, 4, None)})
    metric.update([1], ["yes"])
    scores = metric.compute()
    assert scores["accuracy"] == scores["binary"] == 100
    assert math.isnan(scores["distribution"]) and math.isnan(scores["open"])
