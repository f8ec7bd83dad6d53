import pytest

from lit_eve.evaluation.metrics import VQAv2, VQAv2Reference
from tests.evaluation.golden import expected, inputs, rounded

SCORERS = [("eve", "official_vqaeval_on_eve_submission"), ("official", "official_vqaeval_on_raw_text")]


def case(rules="eve"):
    """A metric, and the ids and answers to rate."""
    references = {
        row["question_id"]: VQAv2Reference(
            tuple(answer["answer"] for answer in row["answers"]), row["answer_type"], row["question_type"]
        )
        for row in inputs("vqav2")["annotations_file"]["annotations"]
    }
    answers = {row["question_id"]: row["answer"] for row in inputs("vqav2")["raw_predictions"]}
    return VQAv2(references, rules), list(answers), list(answers.values())


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


@pytest.mark.parametrize(("rules", "scorer"), [*SCORERS, ("lmms_eval", "lmms_eval")])
def test_every_question_has_the_points_of_the_scorer(rules, scorer):
    points = {str(id): value for id, value in scored(rules).by_question().items()}
    assert points == pytest.approx(expected("vqav2")[scorer]["per_item_percent"], abs=1e-9)


@pytest.mark.parametrize(("rules", "scorer"), SCORERS)
def test_scores_are_those_of_the_official_scorer(rules, scorer):
    scores = scored(rules).compute()
    for key, adjust in (("totals_percent_12_decimals", float), ("totals_percent_rounded_2", rounded)):
        totals = expected("vqav2")[scorer][key]
        wanted = {"overall": totals["overall"]}
        wanted |= {f"answer_type/{name}": score for name, score in totals["perAnswerType"].items()}
        wanted |= {f"question_type/{name}": score for name, score in totals["perQuestionType"].items()}
        assert {name: adjust(score) for name, score in scores.items()} == pytest.approx(wanted, abs=1e-9)


def test_score_of_lmms_eval():
    assert scored("lmms_eval").compute()["overall"] == pytest.approx(expected("vqav2")["lmms_eval"]["total_percent"], abs=1e-9)


def test_no_answer_counts_as_an_empty_one():
    metric, ids, answers = case()
    kept = [(id, answer) for id, answer in zip(ids, answers, strict=True) if id not in (900000, 900001)]
    metric.update(*zip(*kept, strict=True))
    full, _, _ = case()
    full.update(ids, ["" if id in (900000, 900001) else answer for id, answer in zip(ids, answers, strict=True)])
    assert metric.compute() == full.compute()
    assert full.by_question()[900001] == 100  # all people said an article, which is nothing once it is normalised


def test_where_all_people_agree_the_official_scorer_normalises_nothing():
    reference = {1: VQAv2Reference(("yes",) * 10, "yes/no", "is")}
    for rules, wanted in (("official", 0), ("eve", 100), ("lmms_eval", 100)):
        metric = VQAv2(reference, rules)
        metric.update([1], ["Yes."])
        assert metric.compute()["overall"] == wanted
