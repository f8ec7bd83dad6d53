import math

import pytest

from lit_eve.evaluation.metrics import SEEDBench, SEEDBenchReference
from tests.evaluation.golden import expected, inputs, rounded


def case(rules="eve"):
    """A metric over all questions, those about videos too, and the ids and answers to rate: not all questions have one."""
    content = inputs("seedbench")["annotations_file"]
    dimensions = {id: name for name, id in content["question_type"].items()}
    references = {
        row["question_id"]: SEEDBenchReference(dimensions[row["question_type_id"]], row["answer"], row["data_type"])
        for row in content["questions"]
    }
    answers = {str(row["question_id"]): row["text"] for row in inputs("seedbench")["predictions_jsonl"]}
    return SEEDBench(references, rules), list(answers), list(answers.values())


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


SCORERS = [("eve", "eve_seed_strict"), ("eve_tolerant", "eve_seed_tolerance")]


@pytest.mark.parametrize(("rules", "scorer"), SCORERS)
def test_every_question_is_right_or_wrong_as_the_scorer_has_it(rules, scorer):
    metric = scored(rules)
    points = dict.fromkeys(metric.references, 0) | metric.by_question()
    assert points == expected("seedbench")[scorer]["per_item"]


@pytest.mark.parametrize(("rules", "scorer"), SCORERS)
def test_scores_are_those_of_the_scorer(rules, scorer):
    scores = scored(rules).compute()
    wanted = expected("seedbench")[scorer]["totals_printed_percent"]
    totals = {name: rounded(scores[name]) for name in ("image", "all")}
    assert totals == {"image": wanted["image_accuracy"], "all": wanted["Total_accuracy"]}
    dimensions = {name.removeprefix("dimension/"): rounded(score) for name, score in scores.items() if "/" in name}
    assert dimensions == wanted["per_dimension"]
    if rules == "eve":
        for name, (right, total) in expected("seedbench")[scorer]["exact"].items():
            assert scores[name] == pytest.approx(100 * right / total, abs=1e-9)


def test_scores_of_lmms_eval_are_over_answered_questions():
    scores = scored("lmms_eval").compute()
    wanted = expected("seedbench")["lmms_eval_percent"]
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_without_videos_there_is_one_total():
    metric = SEEDBench({1: SEEDBenchReference("Visual Reasoning", "A"), 2: SEEDBenchReference("Visual Reasoning", "B")})
    metric.update([1], ["A"])
    assert metric.compute() == {"image": 50, "dimension/Visual Reasoning": 50}


def test_an_empty_answer_is_wrong_and_nothing_at_all_has_no_score_under_lmms_eval():
    reference = {1: SEEDBenchReference("Visual Reasoning", "A")}
    for rules in ("eve", "eve_tolerant", "lmms_eval"):
        metric = SEEDBench(reference, rules)
        metric.update([1], [""])
        assert metric.compute()["image"] == 0
    assert math.isnan(SEEDBench(reference, "lmms_eval").compute()["image"])
    assert SEEDBench(reference).compute()["image"] == 0
