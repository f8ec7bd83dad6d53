import pytest

from lit_eve.evaluation.metrics import POPE, POPEReference
from tests.evaluation.golden import expected, inputs


def case(rules: str = "official") -> tuple[POPE, list[int], list[str]]:
    """Labels and answers are paired by position within a split, as the official script does."""
    given = inputs("pope")
    labels = {file.removeprefix("coco_pope_").removesuffix(".json"): iter(rows) for file, rows in given["label_files"].items()}
    split_of = {question["question_id"]: question["category"] for question in given["questions_jsonl"]}
    answers = {row["question_id"]: row["text"] for row in given["predictions_jsonl"]}
    references = {id: POPEReference(split_of[id], next(labels[split_of[id]])["label"]) for id in answers}
    return POPE(references, rules), list(answers), list(answers.values())


def scored(rules: str) -> tuple[POPE, list[int]]:
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric, ids


def test_every_answer_is_parsed_as_officially():
    metric, ids = scored("official")
    wanted = expected("pope")["eve_eval_pope"]["per_item"]
    assert {str(id): "yes" if value else "no" for id, value in metric.by_question().items()} == {
        str(id): wanted[str(id)]["parsed"] for id in ids
    }


@pytest.mark.parametrize(("rules", "scorer"), [("official", "eve_eval_pope"), ("lmms_eval", "lmms_eval")])
def test_scores_are_those_of_the_scorer(rules, scorer):
    scores = scored(rules)[0].compute()
    wanted = expected("pope")[scorer]
    splits = wanted.get("per_split", wanted)
    names = ("f1", "accuracy", "precision", "recall", "yes_ratio")
    for split in ("random", "popular", "adversarial"):
        assert {name: scores[f"{name}/{split}"] / 100 for name in names} == pytest.approx(
            {name: splits[split][name] for name in names}, abs=1e-9
        )
    if rules == "official":
        assert scores["f1"] / 100 == pytest.approx(wanted["average_over_splits"]["f1"], abs=1e-9)


def test_a_split_without_a_yes_scores_zero_instead_of_stopping():
    metric = POPE({1: POPEReference("random", "no")})
    metric.update([1], ["No"])
    assert metric.compute()["f1"] == 0
    assert metric.compute()["accuracy/random"] == 100
