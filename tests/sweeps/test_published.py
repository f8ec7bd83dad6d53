"""What experiments/RESULTS.md says is what its numbers say, by the rules of today."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lit_eve.sweeps.ablation import Ablation, read_ablation
from lit_eve.sweeps.report import sections
from lit_eve.sweeps.report.comparison import compare
from lit_eve.sweeps.report.results import Trial, read_csv

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TEXT = (EXPERIMENTS / "RESULTS.md").read_text("utf-8")
PUBLISHED = re.findall(r"^<!-- ablation (.+?) -->$", TEXT, re.MULTILINE)


def test_every_file_belongs_to_an_ablation() -> None:
    endings = (".csv", ".png", "_curves.png")
    expected = {f"{name}{ending}" for name in PUBLISHED for ending in endings}
    assert {path.name for path in (EXPERIMENTS / "results").iterdir()} == expected


def published(name: str) -> tuple[Ablation, list[Trial]]:
    """The ablation with the seeds that were run, which may be fewer than its file asks for, and its trials."""
    trials = read_csv(EXPERIMENTS / f"results/{name}.csv")
    seeds = tuple(sorted({trial.seed for trial in trials}))
    return replace(read_ablation(EXPERIMENTS / "ablations" / f"{name}.yaml"), seeds=seeds), trials


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_words_follow_from_the_numbers(name: str) -> None:
    ablation, trials = published(name)
    section = TEXT.partition(f"<!-- ablation {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
    comparisons = compare(ablation, trials)
    assert ablation.question in section
    assert sections.by_rule(ablation, comparisons, trials) in section
    for comparison in comparisons:
        assert sections.metric_section(comparison) in section
    assert sections.cost(ablation, trials) in section
    there = {(trial.arm, trial.seed) for trial in trials}
    assert there == {(arm.name, seed) for arm in ablation.arms for seed in ablation.seeds} and len(ablation.seeds) >= 3


def test_equal_arms_do_not_differ() -> None:
    """The instrument: two arms that differ in their seeds alone."""
    comparisons = compare(*published("a_a"))
    rows = [row for comparison in comparisons for row in comparison.rows if row.verdict]
    assert len(rows) == 3 and not any(row.verdict.is_resolved for row in rows)
    assert all(row.difference.n == 10 for row in rows)
