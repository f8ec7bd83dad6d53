"""The rule, and nothing but the rule, makes the words."""

from __future__ import annotations

import pytest

from lit_eve.sweeps.report.statistics import paired_difference
from lit_eve.sweeps.report.verdict import verdict


def gain(*differences: float):
    return paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))


@pytest.mark.parametrize(
    ("found", "p", "sign_of_paper", "sentence", "paper"),
    [
        (gain(0.02, 0.03, 0.028), 0.0499, 1, "resolved: better than without by 0.026", "the paper's sign"),
        (gain(0.02, 0.03, 0.028), 0.0499, -1, "resolved: better than without by 0.026", "the opposite of the paper's sign"),
        (gain(0.02, 0.03, 0.028), 0.0499, 0, "resolved: better than without by 0.026", None),
        (gain(-4.0, -4.5), 0.001, -1, "resolved: worse than without by 4.2", "the paper's sign"),
        (gain(-4.0, -4.5), 0.001, 1, "resolved: worse than without by 4.2", "the opposite of the paper's sign"),
        (gain(0.02, 0.03, 0.028), 0.05, 1, "not resolved: better by 0.026, which may be luck", "within noise"),
        (gain(-0.5, 0.25), 0.9, 0, "not resolved: worse by 0.12, which may be luck", None),
        (gain(0.5, -0.5), 1.0, 1, "not resolved: no difference over 2 seeds", "within noise"),
        (gain(7.0), None, 1, "not resolved: one seed says nothing of others", "within noise"),
        (None, None, 1, "not measured: no seed that without has too", None),
    ],
)
def test_words(found, p, sign_of_paper, sentence, paper):
    said = verdict(found, p, sign_of_paper, "without")
    assert (said.sentence, said.paper) == (sentence, paper)
    assert said.is_resolved == sentence.startswith("resolved")
