import math

import pytest

from lit_eve.evaluation.metrics import MME, MMEReference
from tests.evaluation.golden import expected, inputs

WORDS = {1: "yes", 0: "no", -1: "other"}


def case(rules="eve_tool"):
    """A metric, and the ids and answers to rate; two rows that follow each other are about one image."""
    rows = [
        (f"{task}/{place}", MMEReference(task, image, label.lower()), answer)
        for task, lines in inputs("mme")["result_files"].items()
        for place, (image, _, label, answer) in enumerate(lines)
    ]
    ids, references, answers = zip(*rows, strict=True)
    return MME(dict(zip(ids, references, strict=True)), rules), list(ids), list(answers)


def scored(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    return metric


def test_every_answer_is_parsed_as_by_the_tool():
    metric = scored("eve_tool")
    parsed = metric.by_question()
    for task, rows in expected("mme")["mme_eval_tool"]["per_item"].items():
        for place, row in enumerate(rows):
            id = f"{task}/{place}"
            word = WORDS[parsed[id]]
            assert {"parsed": word, "correct": word == metric.references[id].label} == row, id


def test_scores_are_those_of_the_tool():
    scores = scored("eve_tool").compute()
    groups = expected("mme")["mme_eval_tool"]["scores"]
    assert scores["perception"] == pytest.approx(groups["Perception"]["total"], abs=1e-9)
    assert scores["cognition"] == pytest.approx(groups["Cognition"]["total"], abs=1e-9)
    for group in groups.values():
        own = {task: scores[f"score/{task}"] for task in group["subtasks"]}
        assert own == pytest.approx(group["subtasks"], abs=1e-9)


def test_tasks_have_the_numbers_of_the_tool():
    metric = scored("eve_tool")
    scores, parsed = metric.compute(), metric.by_question()
    for task, wanted in expected("mme")["mme_eval_tool"]["per_subtask"].items():
        pairs = [(metric.references[id].label, WORDS[parsed[id]]) for id in parsed if id.startswith(f"{task}/")]
        keys = {"acc": "accuracy", "acc_plus": "accuracy_plus", "precision": "precision", "recall": "recall"}
        own = {key: scores[f"{name}/{task}"] / 100 for key, name in keys.items()}
        own["other_num"] = scores[f"other/{task}"] * len(pairs) / 100
        counted = {"TP": ("yes", "yes"), "FN": ("yes", "no"), "FP": ("no", "yes"), "TN": ("no", "no")}
        own |= {key: pairs.count(pair) for key, pair in counted.items()}
        assert own == pytest.approx(wanted, abs=1e-9)


def test_sums_of_lmms_eval():
    scores = scored("lmms_eval").compute()
    assert {name: scores[name] for name in ("perception", "cognition")} == pytest.approx(expected("mme")["lmms_eval"], abs=1e-9)


def test_an_image_with_one_answer_and_a_task_without_a_whole_image_are_left_out():
    metric, ids, answers = case()
    metric.update(ids[:3], answers[:3])  # existence: an image and a half
    scores = metric.compute()
    assert (scores["score/existence"], scores["accuracy/existence"], scores["perception"]) == (200, 100, 200)
    assert "cognition" not in scores and "score/count" not in scores


def test_an_image_whose_other_question_is_not_asked_is_left_out():
    references = {1: MMEReference("scene", "a", "yes"), 2: MMEReference("scene", "b", "yes")}
    references[3] = MMEReference("scene", "b", "no")
    metric = MME(references)
    metric.update([1, 2, 3], ["No", "Yes", "No"])
    assert metric.compute()["perception"] == 200


def test_images_of_one_name_in_two_tasks_are_two():
    references = {(task, label): MMEReference(task, "0001", label) for task in ("count", "OCR") for label in ("yes", "no")}
    metric = MME(references)
    metric.update(list(references), ["Yes"] * 4)
    scores = metric.compute()
    assert (scores["score/count"], scores["score/OCR"], scores["perception"]) == (50, 50, 100)


def test_without_answers_there_is_no_sum():
    assert math.isnan(case()[0].compute()["perception"])
