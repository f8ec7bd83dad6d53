import pytest

from lit_eve.evaluation.benchmarks import Problems
from lit_eve.evaluation.benchmarks.scienceqa import reference_of
from lit_eve.evaluation.metrics import ScienceQA, option_index, option_letter
from tests.evaluation.golden import expected, inputs


def case(rules="eve"):
    """A metric, and the ids and answers to rate; two questions have no answer."""
    rows = inputs("scienceqa")["problems_json"]
    answers = {row["question_id"]: row["text"] for row in inputs("scienceqa")["predictions_jsonl"]}
    references = {id: reference_of(rows[id], id, Problems()) for id in inputs("scienceqa")["pid_splits_json"]["test"]}
    return ScienceQA(references, rules), list(answers), list(answers.values())


def scored(rules="eve"):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


def test_every_answer_is_parsed_as_officially():
    metric, ids, answers = case()
    wanted = expected("scienceqa")["eve_eval_science_qa"]["per_item"]
    for id, answer in zip(ids, answers, strict=True):
        letter = option_letter(answer)
        assert (letter, option_index(letter, metric.references[id].options)) == (
            wanted[id]["parsed"],
            wanted[id]["pred_index"],
        )


def test_scores_are_those_of_the_scorer():
    metric, wanted = scored(), expected("scienceqa")["eve_eval_science_qa"]
    scores = metric.compute()
    assert metric.by_question() == {id: wanted["per_item"][id]["pred_index"] for id in metric.by_question()}
    assert scores["overall"] == pytest.approx(wanted["acc_percent"], abs=1e-9)
    assert scores["img"] == pytest.approx(100 * wanted["img"]["correct"] / wanted["img"]["count"], abs=1e-9)
    assert f"Accuracy: {scores['overall']:.2f}%, IMG-Accuracy: {scores['img']:.2f}%" in wanted["printed"]


def test_scores_are_those_of_lmms_eval():
    metric, wanted = scored("lmms_eval"), expected("scienceqa")["lmms_eval"]
    rows = inputs("scienceqa")["problems_json"]
    rated = {id: float(index == rows[id]["answer"]) for id, index in metric.by_question().items()}
    assert rated == wanted["per_item"]
    assert metric.compute()["img"] / 100 == pytest.approx(wanted["img_accuracy"], abs=1e-9)


def test_the_table_is_that_of_the_official_tool():
    """Columns as in ScienceQA's tools/evaluate_acc.py, from the files and the official verdicts; no answer is wrong."""
    rows = {id: row for id, row in inputs("scienceqa")["problems_json"].items() if row["split"] == "test"}
    verdicts = {id: item["correct"] for id, item in expected("scienceqa")["eve_eval_science_qa"]["per_item"].items()}

    def percent(belongs):
        chosen = [verdicts[id] for id, row in rows.items() if belongs(row)]
        return 100 * sum(chosen) / len(chosen)

    low = [f"grade{number}" for number in range(1, 7)]
    wanted = {
        "subject/NAT": percent(lambda row: row["subject"] == "natural science"),
        "subject/SOC": percent(lambda row: row["subject"] == "social science"),
        "subject/LAN": percent(lambda row: row["subject"] == "language science"),
        "context/TXT": percent(lambda row: row["hint"]),
        "context/IMG": percent(lambda row: row["image"]),
        "context/NO": percent(lambda row: not row["hint"] and not row["image"]),
        "grade/G1-6": percent(lambda row: row["grade"] in low),
        "grade/G7-12": percent(lambda row: row["grade"] not in low),
    }
    scores = scored().compute()
    assert {name: scores[name] for name in scores if "/" in name} == pytest.approx(wanted, abs=1e-9)
    assert scores["context/IMG"] < scores["img"]  # which leaves out what was not answered


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("A", "A"), ("A\n", "FAILED"), ("A. ", "A"), ("A.\n", "FAILED"), ("F", "FAILED"), ("The answer is Cat", "C")],
)
def test_letters(answer, letter):
    assert option_letter(answer) == letter
