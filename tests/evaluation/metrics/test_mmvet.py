import random

import numpy as np
import pytest

from lit_eve.errors import LitEveError
from lit_eve.evaluation.metrics import MMVet, MMVetReference
from tests.evaluation.golden import expected, inputs


def references() -> dict[int, MMVetReference]:
    return {
        int(id.removeprefix("v1_")): MMVetReference(row["question"], row["answer"], tuple(row["capability"]))
        for id, row in inputs("mmvet")["mm_vet_json"].items()
    }


def case(runs: int = 1) -> tuple[MMVet, list[int], list[str]]:
    """With the grades of the judge, as ``Benchmark.judge`` hands them on."""
    grades = expected("mmvet")[f"mmvet_evaluator_{runs}_run{'s' if runs > 1 else ''}"]["grades"]
    texts = {int(id.removeprefix("v1_")): " ".join(map(str, row["score"])) for id, row in grades.items()}
    return MMVet(references(), runs), list(texts), list(texts.values())


@pytest.mark.parametrize("runs", [1, 2])
def test_scores_are_those_of_the_evaluator(runs):
    metric, ids, grades = case(runs)
    metric.update(ids, grades)
    tables = expected("mmvet")[f"mmvet_evaluator_{runs}_run{'s' if runs > 1 else ''}"]
    wanted = {name: tables["capability_scores"][name] for name in ("total", "std")}
    for number, run in enumerate(tables["capability_scores"]["runs"].strip("[]").split(", "), 1):
        wanted[f"run/{number}"] = float(run)
    for kind, table in (("capability", "capability_scores"), ("integration", "capability_integration_scores")):
        names = tables[table].keys() - {"total", "std", "runs"}
        wanted |= {f"{kind}/{name}": tables[table][name] for name in names}
    assert {name: round(score, 1) for name, score in metric.compute().items()} == wanted


def test_a_question_without_grades_counts_as_zero():
    metric = MMVet({0: MMVetReference("?", "a", ("rec",)), 1: MMVetReference("?", "b", ("ocr",))})
    metric.update([0], ["0.5"])
    assert metric.compute()["total"] == 25
    assert metric.compute()["capability/ocr"] == 0


@pytest.mark.parametrize("text", ["a red bus", "0.5 0.5", ""])
def test_answers_are_not_taken_for_grades(text):
    metric = MMVet({0: MMVetReference("?", "a", ("rec",))})
    with pytest.raises(LitEveError, match="MM-Vet needs a judge"):
        metric.update([0], [text])


def evaluators_total(grades: list[float]) -> float:
    """In the order of mm-vet_evaluator.py: ``+=`` over the questions, NumPy for the rest."""
    total = 0.0
    for grade in grades:
        total += grade
    return float(round((np.array([total]) / len(grades) * 100).mean(), 1))


def test_a_total_on_an_edge_is_rounded_as_by_the_evaluator():
    """Grades of 200 answers that add up to 92.3: a mean of 46.15, whose last digits depend on the order of the answers."""
    seen = set()
    for seed in range(40):
        drawn = random.Random(seed)
        tenths = [drawn.randint(0, 9) for _ in range(200)]
        while (surplus := sum(tenths) - 923) != 0:
            place = drawn.randrange(200)
            tenths[place] = min(max(tenths[place] - (1 if surplus > 0 else -1), 0), 10)
        grades = [tenth / 10 for tenth in tenths]
        metric = MMVet({place: MMVetReference("?", "a", ("rec",)) for place in range(200)})
        metric.update(list(range(200)), [str(grade) for grade in grades])
        wanted = evaluators_total(grades)
        scores = metric.compute()
        assert {MMVet.rounded(scores[name], 1) for name in ("total", "run/1", "capability/rec", "integration/rec")} == {wanted}
        seen.add(wanted)
    assert seen == {46.1, 46.2}
