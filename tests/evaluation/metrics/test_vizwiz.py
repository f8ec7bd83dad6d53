import pytest

from lit_eve.evaluation.metrics import VizWiz, VizWizReference
from tests.evaluation.golden import expected, inputs, rounded

SCORERS = [
    ("eve", False, "vizwiz_api_on_eve_submission"),
    ("official", False, "vizwiz_api_on_raw_text"),
    ("eve", True, "vizwiz_api_leave_one_out_variant_on_eve_submission"),
    ("official", True, "vizwiz_api_leave_one_out_variant_on_raw_text"),
]


def references():
    return {
        row["image"]: VizWizReference(tuple(answer["answer"] for answer in row["answers"]), row["answer_type"])
        for row in inputs("vizwiz")["annotations_file"]
    }


def case(rules="eve", leave_one_out=False):
    """A metric, and the ids and answers to rate."""
    images = {row["question_id"]: row["image"] for row in inputs("vizwiz")["questions_jsonl"]}
    answers = {images[row["question_id"]]: row["text"] for row in inputs("vizwiz")["predictions_jsonl"]}
    return VizWiz(references(), rules, leave_one_out), list(answers), list(answers.values())


def scored(rules, leave_one_out):
    metric, ids, answers = case(rules, leave_one_out)
    metric.update(ids, answers)
    return metric


@pytest.mark.parametrize(("rules", "leave_one_out", "scorer"), [*SCORERS, ("lmms_eval", False, "lmms_eval")])
def test_every_question_has_the_points_of_the_scorer(rules, leave_one_out, scorer):
    points = scored(rules, leave_one_out).by_question()
    assert points == pytest.approx(expected("vizwiz")[scorer]["per_item_percent"], abs=1e-9)


@pytest.mark.parametrize(("rules", "leave_one_out", "scorer"), SCORERS)
def test_scores_are_those_of_the_api(rules, leave_one_out, scorer):
    scores = scored(rules, leave_one_out).compute()
    for key, adjust in (("totals_percent_12_decimals", float), ("totals_percent_rounded_2", rounded)):
        totals = expected("vizwiz")[scorer][key]
        wanted = {"overall": totals["overall"]}
        wanted |= {f"answer_type/{name}": score for name, score in totals["perAnswerType"].items()}
        assert {name: adjust(score) for name, score in scores.items()} == pytest.approx(wanted, abs=1e-9)


def test_score_of_lmms_eval():
    wanted = expected("vizwiz")["lmms_eval"]["total_percent"]
    assert scored("lmms_eval", False).compute()["overall"] == pytest.approx(wanted, abs=1e-9)


def test_what_people_answered_is_compared_as_it_is():
    reference = {"a.jpg": VizWizReference(("The cat",) * 10, "other")}
    for rules, wanted in (("official", 0), ("eve", 0), ("lmms_eval", 100)):
        metric = VizWiz(reference, rules)
        metric.update(["a.jpg"], ["The cat"])
        assert metric.compute()["overall"] == wanted
