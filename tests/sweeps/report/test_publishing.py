"""RESULTS.md: sections that come, change and stay."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.sweeps.ablation import Metric
from lit_eve.sweeps.report.publishing import publish
from lit_eve.sweeps.report.results import read_csv
from tests.sweeps.report.made_up import LOSS, ablation, trials

DAY = datetime.date(2026, 2, 3)
DONE = trials({"without": 0.0, "with": -0.05}, 8)
ALIGNMENT = ablation("without", "with", note="Photos with text would show more.")
LAYERS = replace(
    ablation("without", "with", metrics=(Metric("question_accuracy", "higher"), LOSS)),
    path=Path("which layers.yaml"),
    question="Which layers help: a | b?",
)


def put(folder, made=ALIGNMENT, done=DONE, date=DAY, failed=None) -> str:
    return publish(folder, made, done, failed or {}, f"lit-eve sweep {made.path}", date).read_text("utf-8")


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_section_has_what_its_numbers_come_from(tmp_path):
    text = put(tmp_path)
    assert text.startswith("# Results of the ablations\n\n<!-- overview -->\n")
    section = re.search(r"<!-- ablation alignment -->\n(.*)\n<!-- end of alignment -->", text, re.DOTALL)[1]
    assert section.startswith(
        "## alignment\n\n**Does aligning patches to a teacher help?**\n\n**Answer, by rule:**\n\n- looks_loss: "
    )
    for line in (
        "Command: `lit-eve sweep alignment.yaml`",
        "Date: 2026-02-03",
        "Commit: 2a5cce7f00",
        "Machine: AMD EPYC, 2 cores",
    ):
        assert f"\n- {line}\n" in section
    assert "### looks_loss (lower is better)\n\n| arm | seeds |" in section and "| with | 8 |" in section
    assert "Photos with text would show more." in section
    assert read_csv(tmp_path / "results/alignment.csv")[0].name == "without/seed_0"
    assert Image.open(tmp_path / "results/alignment.png").width > 600
    assert Image.open(tmp_path / "results/alignment_curves.png").width > 600 and "| with | 8 | 412,800 | 1,200 |" in section
    linked = set(re.findall(r"\]\((.+?)\)", section))
    assert {"results/alignment.png", "results/alignment_curves.png", "results/alignment.csv"} <= linked


def test_publishing_twice_changes_nothing(tmp_path):
    put(tmp_path)
    before = contents(tmp_path)
    put(tmp_path)
    put(tmp_path, done=list(reversed(DONE)))
    assert contents(tmp_path) == before


def test_the_date_is_that_of_the_results(tmp_path):
    """Published on another day with the same results, it stays; with others, it is today's."""
    first = put(tmp_path)
    assert put(tmp_path, date=None) == first
    today = put(tmp_path, done=DONE[:-1], date=None)
    assert f"- Date: {datetime.date.today().isoformat()}\n" in today and "Answer so far (15 of 16 trials)" in today


def test_sections_are_sorted_and_replaced_alone(tmp_path):
    alone = put(tmp_path, LAYERS)
    both = put(tmp_path)
    assert re.findall(r"<!-- ablation (.+) -->", both) == ["alignment", "which layers"]
    assert alone[alone.index("<!-- ablation which") :] == both[both.index("<!-- ablation which") :]
    overview = both[: both.index("<!-- end of overview")]
    table = [line for line in overview.splitlines() if line.startswith("|")][2:]
    assert table[0].startswith("| Does aligning patches to a teacher help? | looks_loss: `with` is better than without by 0.0")
    assert table[0].endswith("(the paper's sign). | [alignment](#alignment) |")
    assert table[1].startswith(r"| Which layers help: a \| b? | question_accuracy: ")  # of its first metric
    assert table[1].endswith("| [which layers](#which-layers) |") and "(results/which%20layers.png)" in both

    partial = put(tmp_path, done=DONE[:5], failed={"with/seed_7": "killed"})
    assert partial[partial.index("<!-- ablation which") :] == both[both.index("<!-- ablation which") :]
    assert partial.count("<!-- ablation alignment -->") == 1 and "| so far (5 of 16 trials): looks_loss: " in partial
    assert "Failed: with/seed_7." in partial
    assert put(tmp_path) == both


def test_words_above_the_overview_stay(tmp_path):
    (tmp_path / "RESULTS.md").write_text("# What we found\n\nIn the miniature world.\n")
    put(tmp_path)
    assert put(tmp_path, LAYERS).startswith("# What we found\n\nIn the miniature world.\n\n<!-- overview -->\n")


def test_words_that_would_be_lost_are_refused(tmp_path):
    text = put(tmp_path) + "\nBy hand: it helps.\n"
    (tmp_path / "RESULTS.md").write_text(text)
    with pytest.raises(ConfigError, match=r"'By hand: it helps.' stands below the overview, but in no ablation; move it above"):
        put(tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == text


def test_nothing_is_published_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"alignment.yaml: there is no trial to publish"):
        put(tmp_path, done=[])
    assert not list(tmp_path.iterdir())
