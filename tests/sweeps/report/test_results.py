"""The tables come back as they were written."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from lit_eve.errors import ConfigError
from lit_eve.sweeps.report.results import read_csv, read_curves, write_csv, write_curves
from tests.sweeps.report.made_up import trial, trials

ARMS = {"without": 0.0, "with, a lot": -0.05}


def test_results_come_back(tmp_path):
    made = trials(ARMS, seeds=3)
    made[1] = replace(made[1], flops=None, commit=None)
    write_csv(tmp_path / "deep" / "results.csv", made)
    assert read_csv(tmp_path / "deep" / "results.csv") == [replace(one, curves={}, answers=None) for one in made]


def test_a_row_per_trial_and_metric(tmp_path):
    write_csv(tmp_path / "results.csv", [trial("with", 3, looks_loss=1 / 3, question_accuracy=0.5)])
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shared = {"trial": "with/seed_3", "arm": "with", "seed": "3", "steps": "1200", "flops": "3500000000000000.0"}
    shared |= {
        "seconds": "118.5",
        "core_seconds": "101.25",
        "commit": "2a5cce7f00",
        "machine": "AMD EPYC, 2 cores",
        "parameters": "412800",
    }
    assert rows == [
        {**shared, "metric": "looks_loss", "value": repr(1 / 3)},
        {**shared, "metric": "question_accuracy", "value": "0.5"},
    ]


def test_curves_come_back(tmp_path):
    made = trials(ARMS, seeds=2)
    write_curves(tmp_path / "curves.csv", made)
    assert read_curves(tmp_path / "curves.csv") == {(one.arm, one.seed): dict(one.curves) for one in made}


def test_another_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"results.csv cannot be read: No such file"):
        read_csv(tmp_path / "results.csv")
    write_curves(tmp_path / "curves.csv", trials(ARMS, seeds=1))
    with pytest.raises(ConfigError, match=r"curves.csv must have the columns trial, arm, seed, metric, value"):
        read_csv(tmp_path / "curves.csv")
