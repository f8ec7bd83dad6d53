import pytest

from lit_eve.evaluation.metrics import ScienceQA, ScienceQAReference
from lit_eve.evaluation.metrics.scienceqa import find_choice
from tests.evaluation.golden import expected, inputs


def case(rules="eve"):
    """A metric, and the ids and answers to rate."""
    problems, answered = inputs("scienceqa")["problems_json"], inputs("scienceqa")["predictions_jsonl"]
    references = {
        id: ScienceQAReference(
            len(problems[id]["choices"]),
            problems[id]["answer"],
            problems[id]["image"] is not None,
            bool(problems[id]["hint"]),
            problems[id]["subject"],
            int(problems[id]["grade"].removeprefix("grade")),
        )
        for id in inputs("scienceqa")["pid_splits_json"]["test"]
    }
    return ScienceQA(references, rules), [row["question_id"] for row in answered], [row["text"] for row in answered]


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


def test_every_answer_is_read_as_by_the_official_scorer():
    metric, ids, answers = case()
    wanted = expected("scienceqa")["eve_eval_science_qa"]["per_item"]
    for id, answer in zip(ids, answers, strict=True):
        assert find_choice(answer, metric.references[id].choices) == wanted[id]["pred_index"], (id, answer)
        assert metric.references[id].has_image == wanted[id]["counted_as_image"]


@pytest.mark.parametrize(("rules", "scorer"), [("eve", "eve_eval_science_qa"), ("lmms_eval", "lmms_eval")])
def test_every_question_is_rated_as_by_the_scorer(rules, scorer):
    wanted = expected("scienceqa")[scorer]["per_item"]
    wanted = {id: row["correct"] if isinstance(row, dict) else row for id, row in wanted.items()}
    found = scored(rules).by_question()
    assert {id: wanted[id] for id in found} == found
    assert set(wanted.values()) == {0, 1} and not any(wanted[id] for id in wanted.keys() - found.keys())


def test_scores_are_those_of_the_official_scorer():
    scores, wanted = scored("eve").compute(), expected("scienceqa")["eve_eval_science_qa"]
    assert scores["overall"] == pytest.approx(wanted["acc_percent"], abs=1e-9)
    assert scores["img"] == pytest.approx(100 * wanted["img"]["correct"] / wanted["img"]["count"], abs=1e-9)
    assert f"{scores['overall']:.2f}%, IMG-Accuracy: {scores['img']:.2f}%" in wanted["printed"]


def test_score_of_lmms_eval():
    assert scored("lmms_eval").compute()["img"] / 100 == pytest.approx(expected("scienceqa")["lmms_eval"]["img_accuracy"])


def test_the_table_of_the_tool_of_scienceqa():
    rows = [
        ScienceQAReference(2, 0, True, True, "natural science", 3),
        ScienceQAReference(2, 0, True, False, "social science", 6),
        ScienceQAReference(2, 0, False, True, "language science", 7),
        ScienceQAReference(2, 0, False, False, "natural science", 12),
    ]
    metric = ScienceQA(dict(enumerate(rows)))
    metric.update([0, 1, 2], ["A", "B", "A"])
    assert metric.compute() == {
        "img": 50,
        "overall": 50,
        "subject/NAT": 50,
        "subject/SOC": 0,
        "subject/LAN": 100,
        "context/TXT": 100,
        "context/IMG": 50,
        "context/NO": 0,
        "grade/1-6": 50,
        "grade/7-12": 50,
    }
