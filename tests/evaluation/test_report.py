from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.published import NAMES, PUBLISHED
from lit_eve.evaluation.report import print_table, write_report
from lit_eve.evaluation.results import Result
from tests.evaluation.micro import best_score


def results(names=tuple(BENCHMARKS), **changes) -> list[Result]:
    return [Result(name, name, 0.6 * best_score(name), {"a/b": 1.25}, 10, 10, 10, **changes) for name in names]


def test_the_papers_numbers_belong_to_the_benchmarks():
    assert tuple(BENCHMARKS) == NAMES
    assert all(row.keys() == BENCHMARKS.keys() for row in PUBLISHED.values())
    for row in PUBLISHED.values():
        assert all(score is None or 0 < score < best_score(name) for name, score in row.items())
    assert PUBLISHED["EVE-7B"]["mme"] == 1217.3 and PUBLISHED["LLaVA-1.5 7B"]["vizwiz"] == 50.0  # table 3


def test_the_table_has_a_column_for_each_benchmark_and_the_papers_rows(tmp_path):
    write_report(results(), "mine", tmp_path)
    rows = list(csv.reader((tmp_path / "results.csv").open()))
    assert rows[0] == ["model", *(benchmark.title for benchmark in BENCHMARKS.values()), "notes"]
    assert [row[0] for row in rows[1:]] == ["mine", "EVE-7B", "EVE-7B (HD)", "Fuyu-8B (HD)", "LLaVA-1.5 7B"]
    assert rows[1][1:] == ["60.0"] * 6 + ["1200.0"] + ["60.0"] * 3 + [""]
    assert rows[4][1:] == ["74.2", "", "", "", "", "74.1", "728.6", "10.7", "", "21.4", ""]
    lines = (tmp_path / "results.md").read_text().splitlines()
    table = [line for line in lines[:9] if line.startswith("|")]
    assert len(table) == 7 and len({line.count("|") for line in table}) == 1
    assert "| Fuyu-8B (HD) | 74.2 | - | - | - | - | 74.1 | 728.6 | 10.7 | - | 21.4 |" in table
    assert "SEED there is of images and videos" in "\n".join(lines)
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["scores"] == {"a/b": 1.25}


def test_what_a_reader_must_know_stands_below_the_table(tmp_path):
    (partial,) = results(["gqa"], notes=["partial: 9 of 10 questions, 1 problems"], problems=["x.jsonl, line 3: no JSON"])
    waiting = Result("vizwiz:test", "vizwiz", None, {}, 10, 10, 8000, ["to be handed in"], submission=["submissions/v.json"])
    write_report([partial, waiting], "mine", tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| **mine** | **60.0**\\* | **-**\\* |" in text
    assert list(csv.reader((tmp_path / "results.csv").open()))[1][1:3] == ["60.0", ""]  # no score: an empty cell
    assert "- \\* GQA: partial: 9 of 10 questions" in text and "- GQA: x.jsonl, line 3: no JSON" in text
    assert "[`submissions/v.json`](submissions/v.json)" in text
    assert "GQA: partial: 9 of 10 questions, 1 problems; VizWiz test: to be handed in" not in text  # a line for each
    assert not (tmp_path / "radar.png").exists() and "radar" not in text


def test_a_score_over_nothing_is_null(tmp_path):
    (empty,) = results(["gqa"])
    write_report([replace(empty, score=math.nan, scores={"accuracy": math.nan, "open": 50.0})], "mine", tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    (read,) = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)["results"]
    assert read["score"] is None and read["scores"] == {"accuracy": None, "open": 50.0}
    text = (tmp_path / "results.md").read_text() + (tmp_path / "results.csv").read_text()
    assert "nan" not in text and "| accuracy | - |" in text and "| open | 50.00 |" in text


def test_a_radar_of_other_scores_does_not_stay(tmp_path):
    write_report(results(), "mine", tmp_path)
    assert (tmp_path / "radar.png").exists()
    written = write_report(results(["gqa", "pope"]), "mine", tmp_path)
    assert tmp_path / "radar.png" not in written and not (tmp_path / "radar.png").exists()


@pytest.mark.parametrize("count", [3, 10])
def test_the_radar_shows_the_model(tmp_path, count):
    shown = results(tuple(BENCHMARKS)[:count])
    written = write_report(shown, "mine", tmp_path)
    assert tmp_path / "radar.png" in written
    with Image.open(tmp_path / "radar.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (abs(pixels - [0xC0, 0x39, 0x2B]).sum(-1) < 30).sum()  # the model's line
    write_report([Result(**{**vars(result), "score": 0.01}) for result in shown], "mine", tmp_path)
    with Image.open(tmp_path / "radar.png") as image:
        smaller = np.asarray(image.convert("RGB")).astype(int)
    assert red > 2 * (abs(smaller - [0xC0, 0x39, 0x2B]).sum(-1) < 30).sum()


def test_the_radar_shows_two_splits_of_a_benchmark_apart(tmp_path):
    def low_then(last: float) -> np.ndarray:
        scores = zip(("mme:perception", "mme:all", "pope"), ("mme", "mme", "pope"), (100.0, last, 80.0), strict=True)
        write_report([Result(task, name, score, {}, 1, 1, 1) for task, name, score in scores], "mine", tmp_path)
        with Image.open(tmp_path / "radar.png") as image:
            return np.asarray(image.convert("RGB")).astype(int)

    red = [(abs(low_then(last) - [0xC0, 0x39, 0x2B]).sum(-1) < 30).sum() for last in (100.0, 1500.0)]
    assert red[1] > 1.2 * red[0] > 0


@pytest.mark.parametrize("columns", [80, 200])
def test_a_narrow_terminal_cuts_no_score_off(tmp_path, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    print_table(results(), "mine", tmp_path)
    told = capsys.readouterr().out
    assert "…" not in told and "1217.3" in told and "SEED-Bench" in told


@pytest.mark.parametrize(
    ("name", "score", "shown"),
    [
        ("mmvet", 46.15, "46.2"),  # NumPy rounds ten times the number
        ("gqa", 46.15, "46.1"),  # Python rounds the number that is stored, which is a little less
        ("vqav2", 12.25, "12.3"),  # Python 2: half away from zero
        ("textvqa", 12.25, "12.2"),  # Python 3: half to even
    ],
)
def test_scores_on_an_edge_are_rounded_as_by_the_official_tool(tmp_path, name, score, shown):
    write_report([Result(name, name, score, {}, 10, 10, 10)], "mine", tmp_path)
    assert list(csv.reader((tmp_path / "results.csv").open()))[1][1] == shown


def test_scores_of_another_world_say_so_in_their_row(tmp_path):
    (result,) = results(["gqa"], world="a world of shapes")
    write_report([result], "mine", tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| **mine (a world of shapes)** | **60.0**\\* |" in text
    assert "- \\* GQA: a world of shapes: the papers' scores do not compare." in text
    assert list(csv.reader((tmp_path / "results.csv").open()))[1][0] == "mine (a world of shapes)"
