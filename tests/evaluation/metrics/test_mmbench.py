import pytest

from lit_eve.evaluation.metrics import MMBench, MMBenchReference
from lit_eve.evaluation.metrics.mmbench import find_letter, letter_number
from tests.evaluation.golden import expected, inputs


def references() -> dict[int, MMBenchReference]:
    """As a reader makes them; no cell of the invented table is one that pandas takes for empty."""
    return {
        row["index"]: MMBenchReference(
            row["question"],
            {letter: row[letter] for letter in "ABCD" if row[letter] is not None},
            row["answer"],
            row["category"],
            row["l2-category"],
        )
        for row in inputs("mmbench")["tsv_rows"]
    }


def case(rules: str = "2024_06") -> tuple[MMBench, list[int], list[str]]:
    answers = {row["question_id"]: row["text"] for row in inputs("mmbench")["predictions_jsonl"]}
    return MMBench(references(), rules), list(answers), list(answers.values())


def report(scores: dict[str, float], name: str) -> dict[str, float]:
    """Scores of one kind under the names of VLMEvalKit, as fractions."""
    found = {"Overall": scores[name]}
    for key, score in scores.items():
        if key.startswith((f"{name}_l2_category/", f"{name}_category/")):
            found[key.split("/", 1)[1]] = score
    return {key: score / 100 for key, score in found.items()}


@pytest.mark.parametrize("rules", ["2024_06", "head", "lmms_eval"])
def test_every_letter_is_that_of_the_scorer(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    wanted = expected("mmbench")["rule_based_letter_per_row"]
    wanted = wanted["lmms_eval" if rules == "lmms_eval" else f"vlmevalkit_{rules}"]
    assert metric.by_question() == {int(id): letter_number(letter) for id, letter in wanted.items()}


@pytest.mark.parametrize("rules", ["2024_06", "head"])
def test_circular_scores(rules):
    metric, ids, answers = case(rules)
    metric.update(ids, answers)
    wanted = expected("mmbench")[f"vlmevalkit_{rules}_circular_exact_matching"]["report"]
    assert report(metric.compute(), "circular") == pytest.approx(wanted, abs=1e-9)
    assert metric.compute()[metric.headline] == pytest.approx(100 * wanted["Overall"])


@pytest.mark.parametrize(("name", "scorer"), [("vanilla", "vanilla_first_pass"), ("all_passes", "vanilla_all_passes")])
def test_vanilla_scores(name, scorer):
    metric, ids, answers = case("head")
    metric.update(ids, answers)
    wanted = expected("mmbench")[f"vlmevalkit_head_{scorer}_exact_matching"]
    assert report(metric.compute(), name) == pytest.approx(wanted["report"], abs=1e-9)
    letters = metric.by_question()
    right = {id: int(letters[id] == letter_number(row.answer)) for id, row in metric.references.items()}
    assert {int(id): hit for id, hit in wanted["per_row"].items()}.items() <= right.items()


def test_the_order_of_answers_does_not_matter():
    metric, ids, answers = case()
    metric.update(ids[::-1], answers[::-1])
    other, *_ = case()
    for id, answer in zip(ids, answers, strict=True):
        other.update([id], [answer])
    assert metric.compute() == other.compute()


def test_a_question_is_wrong_without_all_its_passes():
    metric, ids, answers = case()
    chosen = [place for place, id in enumerate(ids) if id % 1_000_000 == 200]
    metric = MMBench({ids[place]: metric.references[ids[place]] for place in chosen})
    metric.update([ids[place] for place in chosen[:-1]], [answers[place] for place in chosen[:-1]])
    assert metric.compute()["circular"] == 0
    assert metric.compute()["vanilla"] == 100
    metric.update([ids[chosen[-1]]], [answers[chosen[-1]]])
    assert metric.compute()["circular"] == 100


def test_an_answer_that_reads_as_an_empty_cell():
    """Tables are read with pandas: "None" comes back as nan, which has the only "an" among its letters."""
    assert find_letter("None", {"A": "an", "B": "none"}) == "A"
    assert find_letter("None", {"A": "an", "B": "none"}, "lmms_eval") == "B"


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("A or so they say", {"2024_06": "A", "head": None, "lmms_eval": None}),
        ("B or so they", {"2024_06": "B", "head": "B", "lmms_eval": "B"}),
        ("the Answer is  **b", {"2024_06": None, "head": "B", "lmms_eval": None}),
        ("The answer is dark", {"2024_06": None, "head": "D", "lmms_eval": None}),
        ("{A}!", {"2024_06": "A", "head": "A", "lmms_eval": None}),
        ("(B).", {"2024_06": "B", "head": "B", "lmms_eval": "B"}),
        ("Z", {"2024_06": "Z", "head": "Z", "lmms_eval": None}),
        ("it is the GREEN one", {"2024_06": "C", "head": "C", "lmms_eval": "C"}),
        ("it is the GREEN one, as far as one can tell from here", {"2024_06": "C", "head": None, "lmms_eval": "C"}),
    ],
)
def test_rules_differ(answer, letters):
    options = {"A": "blue", "B": "red", "C": "green", "D": "white"}
    assert {rules: find_letter(answer, options, rules) for rules in letters} == letters
