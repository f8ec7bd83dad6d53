"""`lit-eve nano` on a world of a few scenes: every step, for real."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import lit_eve
from lit_eve.cli import main
from lit_eve.data import read_samples
from lit_eve.errors import ConfigError
from lit_eve.nano.evaluate import captions_by_word
from lit_eve.nano.ground import SHARED, borrow
from lit_eve.nano.measurement import WORDS, measure
from lit_eve.nano.pipeline import CONFIG, MODELS, make_steps, model_config, read_stage, run_pipeline
from lit_eve.nano.report import draw_learning
from lit_eve.nano.steps import Journal
from lit_eve.nano.world.questions import TYPES

STEPS = ["world", "benchmarks", "language_model", "teacher", "1_prealign", "2_pretrain", "3_finetune"]
STEPS += ["model", "evaluation", "report"]
SMALL: dict[str, dict[str, Any]] = {
    "world": {"text": 64, "prealign": 16, "pretrain": 48, "finetune": 48, "validation": 16, "test": 48, "workers": 1}
    | {"benchmarks": 20},
    "0_language_model": {
        "steps": 4,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "feed_forward": 48,
        "checkpoint_every": 1,
        "tokens": 400,
    },
    "0_teacher": {"steps": 4, "width": 32, "layers": 2, "feed_forward": 48, "checkpoint_every": 1, "batch": 8},
}


def write_config(folder: Path, source: Path = CONFIG, **changes: dict[str, Any]) -> Path:
    """The shipped YAML files, with everything small; ``changes`` by file."""
    folder.mkdir(parents=True)
    for path in source.glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        if path.stem in SMALL:
            settings |= SMALL[path.stem]
        else:
            if "patch_embedding" in settings["model"]:
                settings["model"]["patch_embedding"]["width"] = 32
            settings["model"]["lr"] = 2e-3
            settings["trainer"] |= {"val_check_interval": 1.0, "log_every_n_steps": 1}
            settings["checkpoint"] = {"every_n_steps": 1}
            settings["answers"] = {"num_samples": 4, "max_new_tokens": 4}
        for key, value in changes.get(path.stem, {}).items():
            section = settings
            *parents, last = key.split(".")
            for parent in parents:
                section = section[parent]
            section[last] = value
        (folder / path.name).write_text(yaml.safe_dump(settings))
    return folder


def nano(output: Path, config: Path, *options: str) -> int:
    return main(["nano", "--output", str(output), "--config", str(config), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder and config of a run that is done."""
    folder = tmp_path_factory.mktemp("nano")
    config = write_config(folder / "config")
    assert nano(folder / "run", config) == 0
    return folder / "run", config


@pytest.fixture
def run(finished: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The finished run, restored behind a test that changes it."""
    output, config = finished
    shutil.copytree(output, tmp_path / "backup")
    yield output, config
    shutil.rmtree(output)
    shutil.copytree(tmp_path / "backup", output)


def test_metrics(finished: tuple[Path, Path]) -> None:
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    for name in ("question_accuracy", "blind_accuracy", "shuffled_accuracy", "caption_accuracy"):
        assert 0 <= metrics[name] <= 1
    assert metrics["blind_accuracy"] == max(metrics["baselines"].values())
    assert set(metrics["by_type"]) == set(TYPES) and sum(row["count"] for row in metrics["by_type"].values()) == 48
    for key, name in (("accuracy", "question"), ("blind", "blind"), ("shuffled", "shuffled")):
        right = sum(row[key] * row["count"] for row in metrics["by_type"].values())
        assert right / 48 == pytest.approx(metrics[f"{name}_accuracy"])
    seconds = metrics["seconds"]
    assert list(seconds) == [*STEPS, "data_and_training", "total"] and seconds["2_pretrain"] > 0
    assert seconds["total"] == pytest.approx(sum(seconds[step] for step in STEPS), abs=0.1)
    assert metrics["machine"]["processor"] and metrics["versions"]["torch"]


def test_what_ablations_measure_is_what_the_run_says(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """The losses by word add up to that of all; the rest stands in the run's own metrics."""
    run = finished[0]
    said = json.loads((run / "metrics.json").read_text())
    measured = measure(tmp_path, run / "data", run / "2_pretrain", run / "3_finetune")
    for name in ("caption_loss", "caption_accuracy", "question_accuracy"):
        assert measured[name] == pytest.approx(said[name], rel=1e-5)
    for kind, row in said["by_type"].items():
        assert measured[f"question_accuracy/{kind}"] == pytest.approx(row["accuracy"])
    kind_of = {word: kind for kind, words in WORDS.items() for word in words}
    _, processor = lit_eve.load(run / "2_pretrain")
    counts: Counter[str] = Counter()
    for sample in read_samples(run / "data" / "test_captions"):
        caption = processor.tokenizer(sample.conversation[-1]["value"], add_special_tokens=False).input_ids
        counts.update(kind_of.get(processor.tokenizer.decode([token]).strip(), "other") for token in caption)
        counts["other"] += 1  # the end of the caption
    losses = captions_by_word(run / "2_pretrain", run / "data", WORDS, progress=None)["loss_by_word"]
    mean = sum(count * losses[kind] for kind, count in counts.items()) / counts.total()
    assert mean == pytest.approx(said["caption_loss"], rel=1e-5)
    looks = [losses[kind] for kind in ("colour", "shape", "size")]
    assert measured["looks_loss"] == pytest.approx(sum(looks) / 3) and measured["loss/place"] == pytest.approx(losses["place"])
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sum(row["right"] for row in rows) / len(rows) == pytest.approx(said["question_accuracy"]) and rows[0]["image"]


def test_every_answer_is_kept(finished: tuple[Path, Path]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "evaluation" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 48 and len({line["id"] for line in lines}) == 48
    assert set(lines[0]) == {"id", "type", "question", "expected", "model", "shuffled", "no_image", "blank_image", "majority"}
    right = sum(line["majority"] == line["expected"] for line in lines) / 48
    assert right == json.loads((finished[0] / "metrics.json").read_text())["baselines"]["majority"]


def test_report_shows_pictures_that_are_there(finished: tuple[Path, Path]) -> None:
    report = (finished[0] / "report.md").read_text()
    least = {"losses": 500, "accuracy": 500, "questions": 500, "captions": 300, "answers": 200, "strip": 200}
    for name, pixels in least.items():
        assert (f"(figures/{name}.png)" in report) == (name != "strip")  # which the README has
        assert min(Image.open(finished[0] / "figures" / f"{name}.png").size) > pixels, name
    for word in ("relation", "data and training", "the most frequent answer", "torch"):
        assert word in report


def test_the_report_shows_every_validation(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[list[str]] = []

    def stacked(rows: list[tuple[str, Image.Image]]) -> Image.Image:
        shown.append([label for label, _ in rows])
        return Image.new("L", (1, 1))

    monkeypatch.setattr("lit_eve.nano.report.stacked", stacked)
    titles = {name: f"stage {name[0]}: {name[2:]}" for name in ("1_prealign", "2_pretrain", "3_finetune")}
    draw_learning(tmp_path, finished[0], titles)
    steps = {}
    for stage in ("1_prealign", "2_pretrain"):
        lines = (finished[0] / stage / "answers.jsonl").read_text().splitlines()
        steps[stage] = sorted({json.loads(line)["step"] for line in lines})
    captions, questions = shown
    assert captions == [f"stage {stage[0]}\nstep {step}" for stage in steps for step in steps[stage]]
    assert len(questions) == 4 and all(label.endswith("?") for label in questions)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODELS.glob("*/nano")))
def test_every_design_is_trained_evaluated_and_reported(name: str, finished: tuple[Path, Path], tmp_path: Path) -> None:
    output, config = finished
    shutil.copytree(model_config(name), tmp_path / "config")
    for stem in SHARED.values():
        shutil.copy(config / f"{stem}.yaml", tmp_path / "config")
    decoder = yaml.safe_load((CONFIG / "0_language_model.yaml").read_text())  # of the width that designs name
    decoder |= {key: SMALL["0_language_model"][key] for key in ("steps", "checkpoint_every", "tokens")}
    (tmp_path / "config" / "0_language_model.yaml").write_text(yaml.safe_dump(decoder))
    metrics = run_pipeline(tmp_path / "run", tmp_path / "config", shared_with=output)
    assert 0 <= metrics["question_accuracy"] <= 1 and metrics["caption_loss"] > 0
    report = (tmp_path / "run" / "report.md").read_text()
    pictures = re.findall(r"[(](figures/.*?)[)]", report)
    assert "figures/questions.png" in pictures and all((tmp_path / "run" / picture).exists() for picture in pictures)
    drawn = list((tmp_path / "run").glob("*/word_maps/*.png"))
    assert ("## Learning to see" in report) == bool(drawn) == ("several views" not in report)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_the_teacher_is_trained_beside_the_language_model(finished: tuple[Path, Path]) -> None:
    assert "max_steps=4" in (finished[0] / "teacher" / "log.txt").read_text()


def test_the_exported_model_answers(finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (64, 40), "white").save(tmp_path / "photo.png")
    question = "how many red shapes are there?"
    assert main(["chat", "--model", str(finished[0]), "--image", str(tmp_path / "photo.png"), question]) == 0


def test_called_again_it_does_nothing(finished: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    def stamps() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns for path in finished[0].rglob("*") if path.is_file() and path.name != "metrics.json"
        }

    before, metrics = stamps(), json.loads((finished[0] / "metrics.json").read_text())
    capsys.readouterr()
    assert nano(*finished) == 0
    assert stamps() == before and json.loads((finished[0] / "metrics.json").read_text()) == metrics
    assert capsys.readouterr().out.count("(done, ") == len(STEPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"3_finetune": {"model.lr": 0.5}}, "3_finetune was made with other settings (model.lr: 0.002, now 0.5)"),
        ({"world": {"pretrain": 47}}, "data was made with other settings (pretrain: 48, now 47)"),
        ({"0_teacher": {"scenes": 1}}, "0_teacher.yaml"),
    ],
)
def test_changed_settings_are_refused(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, message: str
) -> None:
    assert nano(finished[0], write_config(tmp_path / "config", **changes)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"2_pretrain": {"model.lrr": 1}}, "2_pretrain.yaml: .*lrr"),
        ({"3_finetune": {"data.init_args.row": 1}}, "3_finetune.yaml: .*row"),
        ({"1_prealign": {"trainer.max_epoch": 1}}, "1_prealign.yaml: .*max_epoch"),
    ],
)
def test_a_typo_in_any_stage_stops_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, message: str
) -> None:
    assert nano(tmp_path / "run", write_config(tmp_path / "config", **changes)) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "run").exists()


def test_redo_after_a_change(run: tuple[Path, Path], tmp_path: Path) -> None:
    output, _ = run
    config = write_config(tmp_path / "config", **{"3_finetune": {"model.lr": 0.01}})
    kept = (output / "2_pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    before = (output / "model" / "model.safetensors").read_bytes()
    assert nano(output, config, "--redo", "3_finetune") == 0
    assert (output / "2_pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == kept
    assert (output / "model" / "model.safetensors").read_bytes() != before


def test_another_run_lends_what_was_made_in_the_same_way(finished: tuple[Path, Path], tmp_path: Path) -> None:
    def borrowed(config: Path) -> list[str]:
        journal = Journal(tmp_path / "own" / "steps")
        source = Journal(finished[0] / "steps")
        theirs = make_steps(finished[0], finished[1], source)
        return borrow(make_steps(tmp_path / "own", config, journal), journal, theirs, source)

    (tmp_path / "own" / ".data.part").mkdir(parents=True)  # of a kill
    (tmp_path / "own" / ".data.part" / "half.tar").touch()
    other = write_config(tmp_path / "other", **{"0_language_model": {"seed": 1}})
    assert borrowed(other) == ["world", "benchmarks", "teacher"]
    shards = [path.relative_to(finished[0]) for path in (finished[0] / "data").rglob("*.tar")]
    assert shards and not list((tmp_path / "own").rglob("half.tar"))
    assert all((tmp_path / "own" / shard).samefile(finished[0] / shard) for shard in shards)
    assert borrowed(other) == []
    journal = Journal(tmp_path / "own" / "steps")
    steps = {step.name: step for step in make_steps(tmp_path / "own", other, journal)}
    assert journal.is_done(steps["world"]) and not journal.is_done(steps["language_model"])


def test_what_lies_in_the_way_is_not_touched(finished: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    journal = Journal(tmp_path / "steps")
    source = Journal(finished[0] / "steps")
    theirs = make_steps(finished[0], finished[1], source)
    assert "world" not in borrow(make_steps(tmp_path, finished[1], journal), journal, theirs, source)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_files_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path / "config")
    (config / "world.yaml").unlink()
    assert nano(tmp_path / "run", config) == 2
    assert f"{config} lacks world.yaml" in capsys.readouterr().err


MOMENTS = [
    "data/pretrain/*.tar*",
    "language_model/checkpoints/*.ckpt",
    "teacher/checkpoints/*.ckpt",
    "1_prealign/checkpoints/*.ckpt",
    "2_pretrain/checkpoints/step00000002.ckpt",
    "2_pretrain/.model.part",
    "3_finetune/checkpoints/*.ckpt",
    "evaluation/answers.jsonl",
    "figures/losses.png",
]


@pytest.mark.slow
def test_killed_at_every_step_it_ends_with_the_same_model(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGKILL when a file appears; the weights and numbers are those of the run that was never killed."""
    output, config = finished
    run = tmp_path / "run"
    command = [sys.executable, "-m", "lit_eve.cli", "nano", "--output", str(run), "--config", str(config)]
    for moment in MOMENTS:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not any(run.glob(moment)) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0), moment
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("1_prealign", "2_pretrain", "3_finetune"):
        weights = [(folder / name / "model" / "model.safetensors").read_bytes() for folder in (output, run)]
        assert weights[0] == weights[1], name
    results = [json.loads((folder / "evaluation" / "results.json").read_text()) for folder in (output, run)]
    assert results[0] == results[1]


def test_paths_of_a_run_move_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "1_prealign.yaml"
    path.write_text(
        "model: {decoder: runs/own/language_model, init_from: runs/own, teacher: runs/owner/teacher}\n"
        "data: [runs/own/data, elsewhere/runs/own]\ntrainer: {default_root_dir: runs/own/1_prealign}\n"
    )
    assert read_stage(path, Path("/there")) == {
        "model": {"decoder": "/there/language_model", "init_from": "/there", "teacher": "runs/owner/teacher"},
        "data": ["/there/data", "elsewhere/runs/own"],
        "trainer": {"default_root_dir": "/there/1_prealign"},
    }
    path.write_text("model: {}\n")
    with pytest.raises(ConfigError, match="names no trainer.default_root_dir"):
        read_stage(path, Path("/there"))
