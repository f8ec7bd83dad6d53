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
