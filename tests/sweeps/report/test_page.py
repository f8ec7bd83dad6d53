"""What a reader of the report finds, from whole, partial and broken results."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import replace

import pytest
from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.sweeps.ablation import Arm, Metric, Paper
from lit_eve.sweeps.report.comparison import compare
from lit_eve.sweeps.report.curves import MOST_LINES, shown_arms, shown_curves
from lit_eve.sweeps.report.page import PANELS, write_report
from lit_eve.sweeps.report.results import read_csv, read_curves
from lit_eve.sweeps.report.sections import answer
from tests.sweeps.report.made_up import ACCURACY, LOSS, ablation, trial, trials

COMMAND = "lit-eve sweep experiments/ablations/alignment.yaml"
DAY = datetime.date(2026, 2, 3)


def report(folder, made, done, failed=None) -> str:
    return write_report(folder, made, done, failed or {}, COMMAND, DAY).read_text("utf-8")


def rows(text: str, title: str) -> list[dict[str, str]]:
    """The first table under a heading."""
    section = text.split(f"# {title}")[1]
    lines = re.search(r"(?:^\|.*\|\n)+", section, re.MULTILINE)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_a_whole_report(tmp_path):
    changes = {"1_prealign": {"model.teacher": None, "model.aligner": None}, "stages": {"model.lr": 0.001}}
    made = ablation(
        "without", "with", metrics=(LOSS, ACCURACY), note="Photos with text would show more.", stages=("2_pretrain",)
    )
    made = replace(made, arms=(Arm("without", changes, ("3_finetune",), 1000), Arm("with")))
    done = trials({"without": 0.0, "with": -0.05}, 8)
    text = report(tmp_path, made, list(reversed(done)))

    assert text.startswith(
        "# Does aligning patches to a teacher help?\n\n**Answer, by rule:**\n\n- looks_loss: `with` is better "
    )
    assert (
        "EVE v1 (arXiv 2406.11832), table 4: with it GQA is 60.8, without it 58.9. There better than `without`: `with`." in text
    )
    for line in (f"Command: `{COMMAND}`", "Date: 2026-02-03", "Commit: 2a5cce7f00", "Machine: AMD EPYC, 2 cores"):
        assert f"\n- {line}\n" in text
    assert "\n- Recipe: nano_hard, stages 2_pretrain; all arms have the same optimizer steps\n" in text
    assert "Not complete" not in text and "## Failed trials" not in text
    assert text.count("Photos with text would show more.") == 1
    assert rows(text, "Arms") == [
        {
            "arm": "without (reference)",
            "changes": "1_prealign: `model.teacher: null`, 1_prealign: `model.aligner: null`, stages: `model.lr: 0.001`, "
            "3_finetune: skip, seed_offset: 1000",
        },
        {"arm": "with", "changes": "nothing"},
    ]

    reference, row = rows(text, "looks_loss (lower is better)")
    assert reference["arm"] == "without (reference)" and reference["seeds"] == "8" and reference["difference"] == "–"
    losses = {arm: [one.metrics["looks_loss"] for one in done if one.arm == arm] for arm in ("with", "without")}
    differences = [one - other for one, other in zip(losses["with"], losses["without"], strict=True)]
    mean = sum(differences) / 8
    assert row["mean"] == f"{sum(losses['with']) / 8:.3f}" and row["difference"] == f"{mean:+.3f}" and mean < 0
    assert row["better in"] == f"{sum(difference < 0 for difference in differences)} of 8"
    low, high = map(float, row["95 % interval"].split(" to "))
    assert low < mean < high < 0 and row["p (Holm)"] == "< 0.001" and int(row["seeds needed"]) >= 2
    assert row["verdict"] == f"resolved: better than without by {-mean:.2g}; the paper's sign"

    questions = {row["arm"]: row for row in rows(text, "Accuracy over questions")}
    assert questions["with"]["questions"] == "1,280" and questions["with"]["images"] == "320"
    right = [answer.is_right for one in done if one.arm == "with" for answer in one.answers]
    assert questions["with"]["answered right (%)"] == f"{100 * sum(right) / len(right):.1f}"
    assert questions["without (reference)"]["difference"] == "–"

    assert rows(text, "Cost")[1] == {
        **{"arm": "with", "trials": "8", "parameters": "412,800", "steps": "1,200", "FLOPs": "3.5e+15"},
        **{"seconds of a core": "101", "times its reference": "1.00"},
    }
    for link in re.findall(r"\]\((.+?)\)", text):
        assert (tmp_path / link).exists(), link
    for picture in ("differences", "learning_curves"):
        assert f"(figures/{picture}.png)" in text and Image.open(tmp_path / "figures" / f"{picture}.png").width > 600
    names = [f"{arm}/seed_{seed}" for arm in ("without", "with") for seed in range(8)]
    assert [one.name for one in read_csv(tmp_path / "results.csv")] == names
    assert len(read_curves(tmp_path / "curves.csv")) == 16


def test_partial_results_say_what_is_missing(tmp_path):
    made = ablation("without", "with", "never", seeds=8, metrics=(LOSS,))
    done = [one for one in trials({"without": 0.0, "with": -0.05}, 8) if one.name not in ("without/seed_2", "with/seed_5")]
    text = report(tmp_path, made, done, {"with/seed_5": "step 40\nRuntimeError: ```out``` of memory"})
    assert "**Answer so far (14 of 24 trials), by rule:**" in text
    assert "Missing: without/seed_2, never/seed_0, never/seed_1," in text and "Failed: with/seed_5." in text
    assert "Without any trial: never." in text
    assert "with/seed_5:\n\n````text\nstep 40\nRuntimeError: ```out``` of memory\n````" in text
    reference, row, never = rows(text, "looks_loss (lower is better)")
    assert (reference["seeds"], row["seeds"], never["seeds"]) == ("7", "7", "0")
    assert row["better in"].endswith(" of 6")
    assert never["verdict"] == "not measured: no seed that without has too"
    assert text.splitlines()[4].endswith("; not measured: `never`.")


def test_many_missing_trials_are_counted(tmp_path):
    made = ablation("without", "with", seeds=40)
    text = report(tmp_path, made, trials({"without": 0.0, "with": 0.0}, 1))
    assert re.search(r"Missing: (without/seed_\d+, ){11}without/seed_12 and 66 more\.", text)


def test_arms_of_unequal_steps_are_not_called_equal(tmp_path):
    made = ablation("without", "with", seeds=2)
    done = trials({"without": 0.0, "with": -0.05}, 2)
    text = report(tmp_path, made, [replace(one, steps=1200 + one.seed) for one in done])  # of each seed's own data
    assert "all arms have the same optimizer steps" in text
    text = report(tmp_path, made, [replace(one, steps=1500) if one.arm == "with" else one for one in done])
    assert "the steps that the recipe gives them, which are not as many for all" in text and "same optimizer steps" not in text


def test_one_seed_proves_nothing(tmp_path):
    made = ablation("without", "with", seeds=1)
    text = report(tmp_path, made, trials({"without": 0.0, "with": -0.3}, 1))
    _, row = rows(text, "looks_loss (lower is better)")
    assert row["verdict"] == "not resolved: one seed says nothing of others; within noise"
    assert {row[name] for name in ("standard deviation", "95 % interval", "p (Holm)", "seeds needed")} == {"–"}
    assert "- looks_loss: not resolved: `with`." in text


def test_the_answer_says_what_would_resolve_a_difference():
    made = ablation("without", "wide", "narrow", metrics=(LOSS,), paper=Paper())
    near = [trial("narrow", seed, looks_loss=0.5 + 0.01 * (-1) ** seed) for seed in range(8)]
    far = [trial("wide", seed, looks_loss=0.5 + 0.1 * (-1) ** seed) for seed in range(8)]
    comparison = compare(made, [*(trial("without", seed, looks_loss=0.5) for seed in range(8)), *near, *far])[0]
    needed = {row.arm: row.needed for row in comparison.rows}
    assert needed["narrow"] < 8 < needed["wide"]
    expected = f"`wide` (0.03 takes {needed['wide']} seeds), `narrow` (0.03 would probably have shown)"
    assert answer(comparison) == f"looks_loss: not resolved: {expected}."


def test_no_trial_is_done_yet(tmp_path):
    text = report(tmp_path, ablation("without", "with", seeds=1), [], {"with/seed_0": "no GPU"})
    assert "No trial is done yet." in text and "Missing: without/seed_0. Failed: with/seed_0." in text and "no GPU" in text
    assert "## Results" not in text and "## Cost" not in text


def test_without_the_reference_nothing_is_compared(tmp_path):
    text = report(tmp_path, ablation("without", "with", seeds=2), trials({"with": 0.0}, 2))
    assert "- looks_loss: not measured: `with`." in text and "differences.png" not in text
    assert rows(text, "Cost")[0]["times its reference"] == "–"


def test_what_cannot_be_known_is_said(tmp_path):
    """Trials of two commits, values that are no numbers, equal differences, and a difference that no number of seeds shows."""
    tiny = Metric("looks_loss", "lower", 1e-6)
    made = ablation("without", "with", "same", metrics=(tiny,), seeds=3, paper=Paper())
    done = trials({"without": 0.0, "with": 0.0}, 3)
    done += [replace(one, arm="same", commit="b" * 40 + "+changes") for one in done if one.arm == "without"]
    done[1] = replace(done[1], metrics={"looks_loss": math.nan}, flops=None)
    text = report(tmp_path, made, done)
    assert "- Commit: 2a5cce7f00, bbbbbbbbbb+changes (**the trials are not all of one commit**)" in text
    assert "No finite number, so left out: with/seed_0." in text
    assert "Where all differences are equal, there is no interval, and p is that of the sign test." in text
    _, row, same = rows(text, "looks_loss (lower is better)")
    assert row["better in"].endswith(" of 2") and row["seeds needed"] == "> 10,000"
    assert (same["difference"], same["p (Holm)"], same["seeds needed"]) == ("+0.000", "1.000", "–")
    assert same["verdict"] == "not resolved: no difference over 3 seeds"
    assert rows(text, "Cost")[1]["FLOPs"] == "–" and "## What is known" not in text


def test_digits_are_those_of_the_interval(tmp_path):
    for scale, mean in ((1.0, r"^0\.\d{3}$"), (1000.0, r"^\d{3}$"), (0.001, r"^0\.\d{6}$")):
        done = [
            replace(one, metrics={"looks_loss": scale * one.metrics["looks_loss"]})
            for one in trials({"without": 0.0, "with": -0.05}, 8)
        ]
        text = report(tmp_path, ablation("without", "with"), done)
        assert re.match(mean, rows(text, "looks_loss (lower is better)")[1]["mean"])


def test_a_metric_that_no_trial_wrote_is_refused_before_anything_is_written(tmp_path):
    made = ablation("without", "with", metrics=(Metric("gqa", "higher"),))
    with pytest.raises(ConfigError, match="no trial wrote 'gqa'; there are looks_loss, question_accuracy"):
        report(tmp_path, made, trials({"without": 0.0}, 1))
    assert not list(tmp_path.iterdir())


def test_curves_that_are_drawn():
    curve = [(1, 1.0), (2, 0.5)]
    names = ["speed/tokens", "train/loss", *(f"{stage}/val/loss" for stage in "abcdefg"), "z/val/loss"]
    one = trial("with", 0, curves={**dict.fromkeys(names, curve), "0/val/point": curve[:1]})
    made = ablation("without", "with", metrics=(Metric("z/val/loss", "lower"), Metric("train/loss", "lower")))
    assert shown_curves(made, [one], PANELS) == [
        "z/val/loss",
        "train/loss",
        "a/val/loss",
        "b/val/loss",
        "c/val/loss",
        "d/val/loss",
    ]


def test_arms_whose_curves_are_drawn(tmp_path):
    """Of many, as a search has, the reference and the best."""
    arms = ["without", *(f"sample_{number:04d}" for number in range(20))]
    made = ablation(*arms, metrics=(LOSS, ACCURACY), seeds=1)
    done = [trial(arm, 0, looks_loss=1 - place / 100, question_accuracy=0.5) for place, arm in enumerate(arms[:-1])]
    loss, _ = compare(made, done)
    assert shown_arms(made, loss) == ["without", *arms[20 - MOST_LINES + 1 : 20]]  # the last has no trial
    assert shown_arms(replace(made, arms=made.arms[:3]), loss) == arms[:3]
    curves = {"2_pretrain/val/loss": [(1, 2.0), (2, 1.0)]}
    text = report(tmp_path, made, [replace(one, curves=curves) for one in done])
    assert "Drawn are the reference and the best arms by looks_loss." in text
