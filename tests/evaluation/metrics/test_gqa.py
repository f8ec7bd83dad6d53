import pytest

from lit_eve.evaluation.metrics import GQA, GQAReference
from lit_eve.evaluation.metrics.gqa import converted, reasoning_steps
from tests.evaluation.golden import expected, inputs

DETAILS = {"StructuralType": "structural", "SemanticType": "semantic", "Steps": "steps", "Length": "words"}


def reference(row: dict) -> GQAReference:
    types, steps = row["types"], reasoning_steps(row["semantic"])
    kinds = types["structural"], types["semantic"], row["groups"]["global"]
    return GQAReference(row["question"], row["answer"], *kinds, steps, row["isBalanced"])


def case(rules="eve"):
    """A metric, and the ids and answers to rate."""
    references = {id: reference(row) for id, row in inputs("gqa")["questions_file"].items()}
    answers = {row["question_id"]: row["text"] for row in inputs("gqa")["predictions_jsonl"]}
    return GQA(references, rules), list(answers), list(answers.values())


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


def test_answers_are_converted_as_eve_does():
    wanted = {row["questionId"]: row["prediction"] for row in expected("gqa")["eve_predictions_file"]}
    assert {row["question_id"]: converted(row["text"]) for row in inputs("gqa")["predictions_jsonl"]} == wanted


@pytest.mark.parametrize(("rules", "scorer"), [("eve", "gqa_eval_on_eve_predictions"), ("lmms_eval", "lmms_eval_exact_match")])
def test_every_question_is_rated_as_by_the_scorer(rules, scorer):
    wanted = expected("gqa")[scorer]["per_item"]
    found = {id: value[0] for id, value in scored(rules).by_question().items()}
    assert {id: found[id] for id in wanted} == wanted
    assert len(found) - len(wanted) == (rules == "eve")  # the one that is not balanced


def test_scores_are_those_of_the_official_scorer():
    scores, wanted = scored("eve").compute(), expected("gqa")["gqa_eval_on_eve_predictions"]
    for name in ("accuracy", "binary", "open", "distribution"):
        assert scores[name] == pytest.approx(wanted["totals"][name], abs=1e-9)
    for detail, name in DETAILS.items():
        accuracies = {key: value for key, (value, _) in wanted["details"][f"accuracyPer{detail}"].items()}
        found = {key.partition("/")[2]: value for key, value in scores.items() if key.startswith(f"{name}/")}
        assert found == pytest.approx(accuracies, abs=1e-9)


def test_score_of_lmms_eval():
    assert scored("lmms_eval").compute()["accuracy"] / 100 == pytest.approx(expected("gqa")["lmms_eval_exact_match"]["total"])


def test_a_question_without_an_answer_is_left_out():
    metric, ids, answers = case()
    metric.update(ids[:10], answers[:10])
    right = [metric.by_question()[id][0] for id in ids[:10] if metric.references[id].is_balanced]
    assert metric.compute()["accuracy"] == pytest.approx(100 * sum(right) / len(right))


def test_the_distribution_tells_two_biased_models_apart():
    references = {i: GQAReference("?", answer, "query", "attr", "colour", 1) for i, answer in enumerate(["red", "red", "blue"])}
    exact, biased = GQA(references), GQA(references)
    exact.update([0, 1, 2], ["red", "red", "blue"])
    biased.update([0, 1, 2], ["red", "red", "red"])
    assert exact.compute()["distribution"] == 0
    assert biased.compute()["distribution"] == pytest.approx(((3 - 2) ** 2 / 2 + (0 - 1) ** 2 / 1) / 100)
