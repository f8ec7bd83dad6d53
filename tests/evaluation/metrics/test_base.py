"""In which order scores are computed: the last digit may hang on it."""

from lit_eve.evaluation.metrics import (
    GQA,
    GQAReference,
    ScienceQA,
    ScienceQAReference,
    SEEDBench,
    SEEDBenchReference,
    TextVQA,
    VQAv2,
    VQAv2Reference,
)
from lit_eve.evaluation.metrics.base import added, average


def test_shares_are_divided_before_they_become_percent():
    """As by the official scripts: 100 * 3 / 11 and 100 * (3 / 11) are not the same number."""
    right = 3 / 11 * 100
    assert right != 100 * 3 / 11
    for metric, yes in (
        (GQA({n: GQAReference("yes", "verify", "attr", 1, 1, None) for n in range(11)}), "yes"),
        (SEEDBench({n: SEEDBenchReference("Scene", "A") for n in range(11)}), "A"),
        (ScienceQA({n: ScienceQAReference(0, 2, True, False, "natural science", 1) for n in range(11)}), "A"),
        (TextVQA(dict.fromkeys(range(11), ("yes",) * 10)), "yes"),
    ):
        metric.update(range(11), [yes] * 3 + ["no"] * 8)
        assert metric.compute()[metric.headline] == right, type(metric).__name__


def test_numbers_are_added_one_after_the_other():
    """As ``sum()`` did before Python 3.12; here the corrected sum is 1.0."""
    assert added([0.1] * 10) == 0.9999999999999999 and average([0.1] * 10) == 0.09999999999999999
    references = {n: VQAv2Reference(("yes",) * (n % 5) + ("no",) * (10 - n % 5), "yes/no", "is") for n in range(50)}
    metric, total = VQAv2(references), 0.0
    metric.update(list(references), ["yes"] * 50)
    for reference in references.values():
        people = reference.answers
        points = 0.0
        for place in range(10):
            others = people[:place] + people[place + 1 :]
            points += min(1, float(others.count("yes")) / 3)
        total += points / 10
    assert metric.compute()["overall"] == 100 * total / 50
