import pytest

from lit_eve.evaluation.metrics import MME, MMEReference
from lit_eve.evaluation.metrics.mme import NO, OTHER, YES
from tests.evaluation.golden import expected, inputs

NAMES = {YES: "yes", NO: "no", OTHER: "other"}


def case(rules="official"):
    """A metric, and the ids and answers to rate; two lines that follow each other are an image."""
    references, answers = {}, {}
    for task, rows in inputs("mme")["result_files"].items():
        for place, (_, _, truth, response) in enumerate(rows):
            references[task, place] = MMEReference(task, place // 2, truth == "Yes")
            answers[task, place] = response
    return MME(references, rules), list(answers), list(answers.values())


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


def test_every_answer_is_read_as_by_the_official_tool():
    wanted = expected("mme")["mme_eval_tool"]["per_item"]
    metric = scored("official")
    found = metric.by_question()
    assert len(found) == sum(map(len, wanted.values()))
    for (task, place), value in found.items():
        item = wanted[task][place]
        is_right = value == (YES if metric.references[task, place].is_yes else NO)
        assert (NAMES[value], is_right) == (item["parsed"], item["correct"]), (task, place)


def test_scores_are_those_of_the_official_tool():
    scores, tool = scored("official").compute(), expected("mme")["mme_eval_tool"]
    for name, group in tool["scores"].items():
        assert scores[name.lower()] == pytest.approx(group["total"], abs=1e-9)
        for task, score in group["subtasks"].items():
            assert scores[f"score/{task}"] == pytest.approx(score, abs=1e-9)
    for task, wanted in tool["per_subtask"].items():
        found = {name: scores[f"{name}/{task}"] for name in ("accuracy", "accuracy_plus", "other")}
        wanted = {"accuracy": 100 * wanted["acc"], "accuracy_plus": 100 * wanted["acc_plus"], "other": wanted["other_num"]}
        assert found == pytest.approx(wanted, abs=1e-9)


def test_scores_of_lmms_eval():
    scores, wanted = scored("lmms_eval").compute(), expected("mme")["lmms_eval"]
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_an_image_with_one_answer_counts_in_the_accuracy_alone():
    metric = MME({(i, k): MMEReference("count", i, k == 0) for i in range(2) for k in range(2)})
    metric.update([(0, 0), (0, 1), (1, 0)], ["Yes", "No", "No"])
    scores = metric.compute()
    assert scores["accuracy/count"] == pytest.approx(200 / 3) and scores["accuracy_plus/count"] == 100
    assert scores["perception"] == scores["score/count"] and "cognition" not in scores
