import pytest

from lit_eve.evaluation.metrics import SEEDBench, SEEDBenchReference
from tests.evaluation.golden import expected, inputs, rounded

SCORERS = [("eve", "eve_seed_strict"), ("eve_tolerant", "eve_seed_tolerance")]


def case(rules="eve"):
    """A metric over all questions, those about videos too, and the ids and answers to rate."""
    file = inputs("seedbench")["annotations_file"]
    names = {number: name for name, number in file["question_type"].items()}
    references = {
        row["question_id"]: SEEDBenchReference(row["answer"], names[row["question_type_id"]], row["data_type"] == "image")
        for row in file["questions"]
    }
    answers = {str(row["question_id"]): row["text"] for row in inputs("seedbench")["predictions_jsonl"]}
    return SEEDBench(references, rules), list(answers), list(answers.values())


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


@pytest.mark.parametrize(("rules", "scorer"), SCORERS)
def test_every_question_is_rated_as_by_the_official_scorer(rules, scorer):
    found, wanted = scored(rules).by_question(), expected("seedbench")[scorer]["per_item"]
    assert {id: found.get(id, 0) for id in wanted} == wanted and found.keys() <= wanted.keys()


@pytest.mark.parametrize(("rules", "scorer"), SCORERS)
def test_scores_are_those_of_the_official_scorer(rules, scorer):
    scores, printed = scored(rules).compute(), expected("seedbench")[scorer]["totals_printed_percent"]
    wanted = {"all": printed["Total_accuracy"], "image": printed["image_accuracy"]}
    wanted |= {f"dimension/{name}": value for name, value in printed["per_dimension"].items()}
    assert {name: rounded(scores[name]) for name in wanted} == wanted
    assert scores.keys() - wanted.keys() == {"video"}


def test_the_exact_shares():
    scores, exact = scored("eve").compute(), expected("seedbench")["eve_seed_strict"]["exact"]
    for name in ("image", "all"):
        assert scores[name] == pytest.approx(100 * exact[name][0] / exact[name][1], abs=1e-9)


def test_scores_of_lmms_eval():
    scores, wanted = scored("lmms_eval").compute(), expected("seedbench")["lmms_eval_percent"]
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_without_videos_nothing_is_said_about_them():
    metric = SEEDBench({1: SEEDBenchReference("A", "Scene Understanding"), 2: SEEDBenchReference("B", "Scene Understanding")})
    metric.update([1], ["A"])
    assert metric.compute() == {"image": 50, "dimension/Scene Understanding": 50}
