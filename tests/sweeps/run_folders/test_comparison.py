"""Runs side by side: tiny trainings, whose files are read here a second time, without lit_eve."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_eve.cli import main
from lit_eve.errors import ConfigError
from lit_eve.sweeps import compare, compare_all, draw_runs, read_run
from lit_eve.sweeps.run_folders.comparison import direction
from lit_eve.sweeps.run_folders.reading import short_names
from lit_eve.training.cli import EveCLI
from tests.training import world as micro


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with the runs slow, fast and blind: another learning rate; another length; no teacher."""
    folder = tmp_path_factory.mktemp("compared")
    world = folder / "world"
    micro.make_decoder(world / "decoder")
    micro.make_teacher(world / "teacher")
    micro.make_shards(world / "train", 30)
    micro.make_shards(world / "validation", 6, seed=1)
    several = {"trainer.max_steps": 6, "trainer.val_check_interval": 3, "answers.num_samples": 0}
    for name, settings in {
        "slow": {},
        "fast": {"model.lr": 2e-2},
        "blind": {"model.teacher": "null", "model.aligner": "null", "trainer.max_steps": 4, "trainer.val_check_interval": 2},
    }.items():
        arguments = micro.arguments(world, folder / "runs" / name, **several | settings)
        if name == "blind":  # there is no aligner to set
            arguments = [argument for argument in arguments if not argument.startswith("--model.aligner.")]
        EveCLI(args=arguments)
    return folder / "runs"


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """The same runs, to be changed."""
    return shutil.copytree(runs, tmp_path / "runs")


def points(run: Path, metric: str) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[metric])) for row in csv.DictReader(file) if row.get(metric)]


def test_settings_that_differ(runs):
    compared = compare(runs / "slow", runs / "fast")
    assert compared.settings == {"model.lr": {"slow": micro.LR, "fast": 2e-2}}, (
        "nothing of the folder, nothing that is the same"
    )
    first, other = (yaml.safe_load((runs / name / "config.yaml").read_text()) for name in ("slow", "blind"))
    settings = compare(runs / "slow", runs / "blind").settings
    assert settings["trainer.max_steps"] == {"slow": 6, "blind": 4}
    assert settings["model.teacher"] == {"slow": first["model"]["teacher"], "blind": None}
    assert settings["model.aligner"] == {"blind": None} and settings["model.aligner.name"] == {"slow": "layerwise"}
    assert first["data"] == other["data"] and not any(key.startswith("data.") for key in settings)
    sections = [key.split(".")[0] for key in settings]
    assert sections == sorted(sections, key=["model", "trainer"].index), "what matters first"


def test_paths_of_the_own_folder_are_the_same(copied):
    for name in ("slow", "fast"):
        path = copied / name / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["trainer"]["default_root_dir"] = f"there/{name}"
        settings["trainer"]["logger"] = [{"class_path": "CSVLogger", "init_args": {"save_dir": f"there/{name}/csv"}}]
        settings["model"]["init_from"] = f"there/{name}2"
        path.write_text(yaml.safe_dump(settings))
    settings = compare(copied / "slow", copied / "fast").settings
    assert list(settings) == ["model.init_from", "model.lr"]


def test_last_and_best_values(runs):
    names = ("slow", "fast", "blind")
    compared = compare(*(runs / name for name in names))
    assert [row.metric for row in compared.rows[:2]] == ["val/language_loss"] * 2
    seen = set()
    for row in compared.rows:
        if row.kind == "best" and row.metric.startswith(("train/", "val/")):
            seen.add(row.metric)
            choose = max if row.metric.endswith("accuracy") else min
            for name in names:
                logged = points(runs / name, row.metric)
                if not logged:
                    assert name not in row.values
                    continue
                assert row.values[name].value == choose(value for _, value in logged), (name, row.metric)
                last = compared.row(row.metric).values[name]
                assert (last.step, last.value) == logged[-1]
                assert dict(logged)[row.values[name].step] == row.values[name].value
    metrics = ("language_loss", "alignment_loss", "loss", "token_accuracy")
    assert seen == {f"{part}/{metric}" for part in ("train", "val") for metric in metrics}
    for kind in ("last", "best"):
        row = compared.row("val/language_loss", kind)
        assert row.best == (min(names, key=lambda name: row.values[name].value),)
        row = compared.row("train/token_accuracy", kind)
        highest = max(value.value for value in row.values.values())
        assert set(row.best) == {name for name in names if row.values[name].value == highest}
    with pytest.raises(ConfigError, match=r"no run has a best value of 'lr/stage'; metrics are val/language_loss, "):
        compared.row("lr/stage", "best")


def test_what_cannot_be_compared_has_no_best(runs, copied):
    compared = compare(runs / "slow", runs / "blind")
    assert set(compared.row("val/loss").values) == {"slow", "blind"} and compared.row("val/loss").best == ()
    assert compared.row("val/language_loss").best, "it does not depend on the teacher"
    assert compared.notes[0].startswith("*/alignment_loss: not comparable") or "*/loss: not comparable" in compared.notes[-1]
    assert all("model.teacher" in note for note in compared.notes)
    assert not compare(runs / "slow", runs / "fast").notes
    path = copied / "fast" / "config.yaml"
    path.write_text(path.read_text().replace("/validation\n", "/other\n"))
    compared = compare(copied / "slow", copied / "fast")
    assert compared.row("val/language_loss").best == () and compared.row("train/language_loss").best
    assert compared.notes == [
        "val/*: not comparable, as the validation data differ (data.validation); no run is marked as the best."
    ]


@pytest.mark.parametrize(
    ("metric", "better"),
    [("val/my_loss", "lower"), ("train/perplexity", "lower"), ("pope/accuracy/random", "higher"), ("benchmarks/gqa", "higher")]
    + [(name, None) for name in ("lr/stage", "train/gradient_norm", "shuffled_accuracy", "train/mine", "pope/answered")],
)
def test_directions(metric, better):
    assert direction(metric) == better


def test_cost(runs):
    for name in ("slow", "blind"):
        run = read_run(runs / name)
        record = json.loads((runs / name / "metrics.json").read_text())
        assert (
            run.cost.finished
            and run.cost.steps == run.cost.seconds_until == record["step"] == points(runs / name, "lr/stage")[-1][0]
        )
        assert run.cost.seconds == record["seconds"] and run.cost.commit == record["versions"]["commit"]
        assert run.cost.tokens == points(runs / name, "data/tokens")[-1][1]
        assert record["machine"]["processor"] in run.cost.machine


def test_curves_along_seconds_and_tokens(runs):
    run = read_run(runs / "slow")
    for axis, column in (("tokens", "data/tokens"), ("seconds", "speed/seconds")):
        logged = dict(points(runs / "slow", column))
        x, values = run.along("val/loss", axis)
        assert list(zip(x, values, strict=True)) == [(logged[step], value) for step, value in points(runs / "slow", "val/loss")]
    steps, _ = run.along("val/loss", "step")
    assert list(steps) == [3, 6]
    old = read_run(micro.ROOT / "tests/data/run_0.1/run")
    assert list(old.along("train/loss", "step")[0]) == [1, 2, 3, 4] and old.cost.tokens is None
    with pytest.raises(ConfigError, match=r"run_0.1/run does not know its tokens: there is no column 'data/tokens' in its"):
        old.along("train/loss", "tokens")
    with pytest.raises(ConfigError, match="there is no axis 'miles'; the axes are step, seconds, tokens"):
        old.along("train/loss", "miles")


def test_a_validation_between_two_rows_lies_between_them(copied):
    (copied / "slow" / "metrics.csv").write_text("step,train/loss,data/tokens,val/loss\n2,1.0,100,\n3,,,5.0\n6,1.0,500,\n")
    assert read_run(copied / "slow").along("val/loss", "tokens")[0] == [200]


def test_the_figure_draws_what_runs_share(runs):
    compared = compare(runs / "slow", runs / "blind")
    assert compared.curves[0] == "val/language_loss" and not [tag for tag in compared.curves if "alignment" in tag]
    figure = draw_runs(compared)
    for place, metric in zip(figure.axes, compared.curves, strict=False):
        assert place.get_title(loc="left").removesuffix(" (log)") == metric
        assert {line.get_label() for line in place.lines} == {"slow", "blind"}
        for line in place.lines:
            assert [tuple(point) for point in line.get_xydata()] == points(runs / line.get_label(), metric)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["slow", "blind"]
    colours = [[line.get_color() for line in place.lines] for place in figure.axes if place.lines]
    assert all(pair == colours[0] and pair[0] != pair[1] for pair in colours)
    chosen = draw_runs(compare(runs / "slow", runs / "fast"), "tokens", ["train/loss"])
    (place,) = chosen.axes
    assert place.get_xlabel() == "tokens" and place.lines[0].get_xdata()[-1] == points(runs / "slow", "data/tokens")[-1][1]
    with pytest.raises(ConfigError, match="no run has a curve of 'val/mine'"):
        draw_runs(compared, metrics=["val/mine"])


# ---- runs that are not finished, or damaged


def test_a_crash_leaves_the_good_rows(copied):
    path = copied / "fast" / "metrics.csv"
    good = points(copied / "fast", "train/loss")
    whole = path.read_text().splitlines()
    for end, damaged in (("", 0), ("7,0.1", 1), ("7,0.1\n8,1.", 2), ("\0" * 64, 1), ("\0" * 9 + "\nx,1,2\n", 2)):
        path.write_text("\n".join(whole) + "\n" + end)
        run = read_run(copied / "fast")
        assert list(zip(*run.curves["train/loss"], strict=True)) == good and run.damaged == damaged, repr(end)
    path.write_text("\n".join(whole)[:-3])  # in the middle of the last row
    run = read_run(copied / "fast")
    assert list(zip(*run.curves["train/loss"], strict=True)) == good[:-1] and run.damaged == 1
    assert "fast: 1 damaged row of metrics.csv left out." in compare(copied / "slow", copied / "fast").notes
    path.write_text("st")
    assert not read_run(copied / "fast").curves


def test_a_run_that_has_logged_nothing_yet(copied, capsys):
    for path in (copied / "fast").iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    compared = compare(copied / "slow", copied / "fast")
    assert compared.settings == {"model.lr": {"slow": micro.LR, "fast": 2e-2}}
    assert compared.notes == ["fast has logged nothing yet."] and not compared.curves
    cost = compared.runs["fast"].cost
    assert not cost.finished and cost.steps is None and cost.seconds is None
    assert cost.commit == compared.runs["slow"].cost.commit, "config.yaml says it"
    assert compared.row("val/loss").best == (), "there is no competition"
    assert main(["compare", str(copied / "slow"), str(copied / "fast"), "--output", str(copied / "out")]) == 0
    assert "fast has logged nothing yet." in capsys.readouterr().out


def test_a_run_that_goes_on(copied):
    """Its newest rows are newer than its metrics.json, which is written at validations."""
    record = json.loads((copied / "slow" / "metrics.json").read_text())
    (copied / "slow" / "metrics.json").write_text(json.dumps(record | {"finished": False, "step": 3, "seconds": 1.5}))
    cost = read_run(copied / "slow").cost
    assert (cost.finished, cost.steps, cost.seconds, cost.seconds_until) == (False, 6, 1.5, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["slow"], "a comparison takes at least two runs, got slow"),
        (["slow", "none"], "there is no folder none"),
        (["slow", "slow/config.yaml"], "config.yaml is a file; a run is the folder that holds config.yaml and metrics.csv"),
        (["slow", "slow/checkpoints"], "slow/checkpoints is no run: it lacks config.yaml and metrics.csv$"),
        (
            ["slow", "."],
            "is no run: it lacks config.yaml and metrics.csv; in it are the runs blind, fast, link, slow: name those",
        ),
        (["slow", "fast", "./slow"], "slow is given twice$"),
        (["slow", "link"], "link is given twice: slow is the same folder"),
        (["slow", "no_config"], "no_config is no run: it lacks config.yaml$"),
        (["slow", "bad_config"], "bad_config/config.yaml cannot be read: "),
        (["slow", "list"], r"list/config.yaml is damaged: it must be a mapping from names, and is \['a'\]"),
        (["slow", "bad_record"], "bad_record/metrics.json cannot be read: "),
        (["nano", "slow"], "slow is one run, nano holds the stages 1_prealign: name one of them, such as nano/1_prealign"),
    ],
)
def test_bad_input(copied, monkeypatch, capsys, given, message):
    monkeypatch.chdir(copied)
    Path("link").symlink_to("slow")
    if given[1:2] and given[1].startswith(("no_", "bad_", "list")):
        shutil.copytree("slow", given[1])
    if given[-1] == "no_config":
        Path("no_config/config.yaml").unlink()
    if given[-1] == "bad_config":
        Path("bad_config/config.yaml").write_text("a: [")
    if given[-1] == "list":
        Path("list/config.yaml").write_text("[a]")
    if given[-1] == "bad_record":
        Path("bad_record/metrics.json").write_text('{"step": ')
    if given[0] == "nano":
        shutil.copytree("fast", "nano/1_prealign")
    assert main(["compare", *given]) == 2
    assert re.search(message, capsys.readouterr().err.strip(), flags=re.MULTILINE)
    assert not Path("runs/compare").exists()


# ---- miniatures


def make_miniature(folder: Path, stages: dict[str, Path], seed: int, accuracy: float) -> None:
    """What lit-eve nano leaves, of runs that are there."""
    for stage, run in stages.items():
        shutil.copytree(run, folder / stage)
        path = folder / stage / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["trainer"]["default_root_dir"] = str(folder / stage)
        settings["data"]["init_args"]["train"] = str(folder / "data" / "train")
        path.write_text(yaml.safe_dump(settings))
    (folder / "steps").mkdir()
    (folder / "steps" / "world.json").write_text(json.dumps({"settings": {"seed": seed, "scenes": {"noise": 28.0}}}))
    (folder / "steps" / "1_prealign.json").write_text(json.dumps({"settings": {"model": {"lr": seed}}}))
    results = {
        "caption_loss": 1 - accuracy,
        "question_accuracy": accuracy,
        "by_type": {"colour": {"accuracy": accuracy, "blind": 0.1}},
    }
    others = {"seconds": {"world": 1.0, "total": 7.5}, "core_seconds": {"world": 1.0}, "versions": {"commit": "abc"}}
    (folder / "metrics.json").write_text(json.dumps({**results, **others, "machine": {"processor": "X", "cores": 2}}))


def test_miniatures_are_compared_by_stages(runs, tmp_path, capsys):
    make_miniature(tmp_path / "a", {"1_prealign": runs / "slow", "2_pretrain": runs / "slow"}, 0, 0.5)
    make_miniature(tmp_path / "b", {"1_prealign": runs / "fast", "3_finetune": runs / "slow"}, 0, 0.75)
    shutil.copytree(runs / "slow", tmp_path / "b" / "2_pretrain.1")  # moved aside
    whole, stage = compare_all([tmp_path / "a", tmp_path / "b"])
    assert (whole.title, stage.title) == ("all stages", "1_prealign") and whole.names == stage.names == ["a", "b"]
    assert stage.settings == {"model.lr": {"a": micro.LR, "b": 2e-2}}, "paths in the miniature are its own"
    assert not whole.settings and whole.row("question_accuracy").best == ("b",)
    assert whole.row("question_accuracy").values["a"] == (0.5, None)
    better = [row.metric for row in whole.rows if direction(row.metric)]
    assert better == ["caption_loss", "question_accuracy", "by_type.colour.accuracy"]  # the whole in front of its parts
    assert whole.row("by_type.colour.blind").best == () and "seconds.total" not in {row.metric for row in whole.rows}
    assert whole.runs["a"].cost.seconds == 7.5 and whole.runs["a"].cost.finished
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]) == 0
    assert "1_prealign ──" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.md", "curves_1_prealign.png"}


def test_miniatures_of_other_worlds_have_no_best(runs, tmp_path):
    for seed, name in enumerate("ab"):
        make_miniature(tmp_path / name, {"1_prealign": runs / ("slow", "fast")[seed]}, seed, 0.5 + seed / 4)
    whole, stage = compare_all([tmp_path / "a", tmp_path / "b"])
    assert whole.settings == {"world.seed": {"a": 0, "b": 1}}
    assert not any(row.best for row in (*whole.rows, *stage.rows))
    assert "world.seed" in whole.notes[0] and any(note.startswith("val/*: ") for note in stage.notes)


# ---- the command


def test_the_command_writes_a_page_and_curves(runs, tmp_path, capsys):
    given = [str(runs / name) for name in ("slow", "fast", "blind")]
    output = tmp_path / "compared"
    assert main(["compare", *given, "--output", str(output)]) == 0
    printed, page = capsys.readouterr().out, (output / "compare.md").read_text()
    values = {name: points(runs / name, "val/language_loss")[-1] for name in ("slow", "fast", "blind")}
    texts = {name: f"{value:.4g} ({step})" for name, (step, value) in values.items()}
    best = min(values, key=lambda name: values[name][1])
    row = next(line for line in printed.splitlines() if "val/language_loss" in line and "last" in line)
    assert row.split()[2:] == " ".join(text + "*" * (name == best) for name, text in texts.items()).split()
    cells = [f"**{text}**" if name == best else text for name, text in texts.items()]
    assert f"| val/language_loss | last | {' | '.join(cells)} |" in page
    assert f"| model.lr | {micro.LR} | 0.02 | {micro.LR} |" in page and "| slow | " + given[0] in page
    assert "seed_everything" not in page and "default_root_dir" not in page
    assert "![Curves of all runs](curves.png)" in page
    picture = np.asarray(Image.open(output / "curves.png").convert("RGB"))
    assert picture.std() > 10 and picture.shape[1] > 1000
    assert str(output / "compare.md") in printed

    assert main(["compare", *given, str(output), "--output", str(output), "--json"]) == 0  # as runs/* gives it
    found = json.loads(capsys.readouterr().out)["runs"]
    assert found["settings"]["model.lr"] == {"slow": micro.LR, "fast": 0.02, "blind": micro.LR}
    (row,) = (row for row in found["metrics"] if (row["metric"], row["kind"]) == ("val/language_loss", "last"))
    assert row["values"]["fast"] == {"value": values["fast"][1], "step": values["fast"][0]} and row["best"] == [best]
    assert found["cost"]["slow"]["finished"] and found["runs"]["slow"] == given[0]
    assert main(["compare", str(output), "--output", str(output)]) == 2
    assert "is what lit-eve compare has written, and no run" in capsys.readouterr().err


def test_many_runs_are_shown_below_each_other(runs, tmp_path, capsys):
    names = [f"lr0.{index}_seed{index}" for index in range(9)]
    for seed, name in enumerate(names):
        config = shutil.copytree(runs / "blind", tmp_path / name) / "config.yaml"
        config.write_text(config.read_text().replace("seed_everything: 0", f"seed_everything: {seed}"))
    given = [str(tmp_path / name) for name in names]
    assert main(["compare", *given, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.split("Written")[0].splitlines())) <= 132
    assert all(printed.count(f"{name} ") == 3 for name in names), "whole, in each of the three tables"
    assert printed.count("seed_everything") == printed.count("settings that differ") == 2
    assert main(["compare", given[0], str(runs / "blind"), "--output", str(tmp_path / "out")]) == 0
    assert "No setting differs." in capsys.readouterr().out


def test_an_axis_that_files_do_not_know(runs, capsys, tmp_path):
    old = str(micro.ROOT / "tests/data/run_0.1/run")
    assert main(["compare", str(runs / "slow"), old, "--x", "seconds", "--output", str(tmp_path / "out")]) == 2
    assert "run_0.1/run does not know its seconds" in capsys.readouterr().err
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--x", "seconds", "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/2_pretrain", "runs/b/2_pretrain"], ["a", "b"]),
        (["x/lr1/seed0/1_prealign", "x/lr2/seed1/1_prealign"], ["lr1/seed0", "lr2/seed1"]),
        (["runs/a", "runs/a/old"], ["a", "old"]),
        (["runs/a", "elsewhere/a"], ["runs", "elsewhere"]),
        (["runs/a/b", "runs/b"], ["a", "b"]),
        (["x/b", "x/b/b"], ["x/b", "x/b/b"]),
    ],
)
def test_short_names(paths, names):
    assert short_names(paths) == names


def test_the_example_of_the_page(runs, tmp_path, monkeypatch, capsys):
    page = (micro.ROOT / "docs/runs.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name, folder in re.findall(r"lit-eve compare (\S+) (\S+2_pretrain)", page):
        shutil.copytree(runs / "slow", name)
        shutil.copytree(runs / "fast", folder)
    exec(code, found := {})
    assert "model.lr" in capsys.readouterr().out and Path("curves.png").stat().st_size > 10_000
    assert found["values"][-1] == points(runs / "fast", "val/language_loss")[-1][1]
