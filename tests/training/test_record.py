"""metrics.csv and other lines of a run: a row per step, none twice, none lost; loggers stay in the run folder."""

from __future__ import annotations

import csv
import json
import subprocess
import warnings

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_eve.data import FinetuneDataModule
from lit_eve.errors import LitEveError
from lit_eve.interpretation import overlay
from lit_eve.processing import ImageGeometry, load_image
from lit_eve.training.callbacks import SampleAnswers
from lit_eve.training.cli.loggers import run_loggers
from lit_eve.training.record import MetricsFile, environment, forget_after, last_values
from lit_eve.training.record.environment import commit
from tests.training import world as micro


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_step(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"a": 1.0}, step=1)
    log.log_metrics({"b": 2.0}, step=1)  # the same step: the same row
    log.log_metrics({"a": 1 / 3}, step=2)
    log.log_metrics({"b": 12.0, "epoch": 0}, step=2)
    log.log_metrics({"b": 0.5}, step=2)  # again, and shorter
    log.log_metrics({"a": 4.0, "c": float("nan")}, step=3)
    assert read(tmp_path) == [
        {"step": "1", "a": "1.0", "b": "2.0", "c": ""},
        {"step": "2", "a": repr(1 / 3), "b": "0.5", "c": ""},
        {"step": "3", "a": "4.0", "b": "", "c": "nan"},
    ]
    values = last_values(tmp_path)
    assert (values["a"], values["b"]) == (4.0, 0.5)


def test_what_lies_behind_the_checkpoint_is_dropped(tmp_path):
    log = MetricsFile(tmp_path)
    for step in (10, 20, 30):
        log.log_metrics({"a": step}, step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("40,")  # a crash in the middle of a row
    again = MetricsFile(tmp_path, after=20)
    again.log_metrics({"val": 1.0}, 20)
    again.log_metrics({"a": 31}, 30)
    assert [(row["step"], row["a"], row["val"]) for row in read(tmp_path)] == [
        ("10", "10.0", ""),
        ("20", "20.0", "1.0"),
        ("30", "31.0", ""),
    ]
    MetricsFile(tmp_path).log_metrics({"a": 1.0}, 10)
    assert [row["step"] for row in read(tmp_path)] == ["10"], "a run that begins anew"


def test_lines_behind_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "answers.jsonl"
    forget_after(path, 3)
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"st')
    forget_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("given", "kinds"),
    [(None, [TensorBoardLogger, MetricsFile]), (True, [TensorBoardLogger, MetricsFile]), (False, [MetricsFile])],
)
def test_loggers_of_a_run(tmp_path, given, kinds):
    made = run_loggers({"default_root_dir": str(tmp_path), "logger": given}, after=0)
    assert [type(logger) for logger in made] == kinds


def test_loggers_write_into_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [CSVLogger("."), TensorBoardLogger("."), CSVLogger("elsewhere")]
    for logger in run_loggers({"default_root_dir": "run", "logger": given}, after=0):
        logger.log_metrics({"a": 1.0}, 1)
        logger.save()
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.csv")}
    assert files == {"run/csv/version_0/metrics.csv", "run/metrics.csv", "elsewhere/lightning_logs/version_0/metrics.csv"}
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "elsewhere"}


class Texts(Logger):
    """Takes text and images as WandbLogger does."""

    name = version = "texts"

    def __init__(self):
        super().__init__()
        self.texts, self.images = [], []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, *args, **kwargs):
        pass

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.texts.append((key, columns, step))

    def log_image(self, key, images, step=None, **kwargs):
        self.images.append((key, len(images), step))


def test_sample_answers_go_wherever_text_is_taken(world, tmp_path):
    data = FinetuneDataModule(
        train=str(world / "train"), validation=str(world / "validation"), max_tokens=256, num_workers=0, template="vicuna_v1"
    )
    shown, log = SampleAnswers(num_samples=2, max_new_tokens=3), Texts()
    settings = {"logger": log, "callbacks": [shown], "limit_val_batches": 1, "max_steps": 2, "val_check_interval": 1}
    micro.trainer(tmp_path, **settings).fit(micro.make_module(world), datamodule=data)
    words = ["prompt", "answer", "expected"]
    assert log.texts == [(f"answers/{index}", ["step", *words], step) for step in (1, 2) for index in (0, 1)]
    pictures = {step: [key for key, _, at in log.images if at == step] for step in (1, 2)}
    assert "answers/0/image_0" in pictures[1] and "answers/0/word_maps" in pictures[1]
    assert pictures[2] == ["answers/0/word_maps", "answers/1/word_maps"]  # the images themselves once
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 2, 2]
    assert all(list(row) == ["step", "id", *words] for row in rows)


@pytest.mark.parametrize("recordable", [True, False])
def test_answers_do_not_depend_on_word_maps(world, tmp_path, monkeypatch, recordable):
    """They are pictures of the same answers; a decoder whose attention cannot be recorded answers without."""
    data = {"train": str(world / "train"), "validation": str(world / "validation"), "max_tokens": 256, "num_workers": 0}
    written = []
    for maps in (True, False):
        run = tmp_path / str(maps)
        shown = SampleAnswers(num_samples=3, max_new_tokens=6, word_maps=maps)
        module = micro.make_module(world)
        if not recordable:
            monkeypatch.setattr("lit_eve.interpretation.answers.AttentionRecorder", refuse)
        settings = {"logger": Texts(), "callbacks": [shown], "limit_val_batches": 1, "max_steps": 1, "val_check_interval": 1}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            micro.trainer(run, **settings).fit(module, datamodule=FinetuneDataModule(template="vicuna_v1", **data))
        told = [str(one.message) for one in told if "word maps" in str(one.message)]
        assert told == (["answers are logged without word maps: it has none"] if maps and not recordable else [])
        pictures = sorted(path.name for path in run.glob("word_maps/*"))
        assert pictures == ([f"step00000001_{index}.png" for index in range(3)] if maps and recordable else [])
        written.append((run / "answers.jsonl").read_text())
    assert written[0] == written[1]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_word_maps_lie_on_the_frame_that_the_model_sees(world, tmp_path, monkeypatch, fit):
    drawn = []
    draw = lambda picture, *args, **kwargs: drawn.append(picture) or overlay(picture, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr("lit_eve.interpretation.strips.overlay", draw)
    geometry = {"name": "square", "patch_size": 4, "pool_size": 2, "image_size": 32, "fit": fit}
    photos = [load_image(image) for image in answer_one(world, tmp_path, geometry)]
    assert (tmp_path / "word_maps" / "step00000001_0.png").exists()
    assert photos and all(photo.width != photo.height for photo in photos)
    frames = [ImageGeometry.from_dict(geometry).frame(photo).tobytes() for photo in photos]
    assert drawn and {picture.tobytes() for picture in drawn} == set(frames)


def answer_one(world, run, geometry):
    """The photos of the validation sample that is answered after a step of training."""
    shards = {"train": str(world / "train"), "validation": str(world / "validation")}
    data = FinetuneDataModule(**shards, max_tokens=512, num_workers=0, template="vicuna_v1")
    module = micro.make_module(world, geometry=geometry, teacher=None, aligner=None)
    callbacks = [SampleAnswers(num_samples=1, max_new_tokens=6)]
    micro.trainer(run, logger=Texts(), callbacks=callbacks, limit_val_batches=1, max_steps=1).fit(module, datamodule=data)
    return data.samples("validation", 1)[0].images


def test_tiles_have_no_word_maps(world, tmp_path):
    geometry = {"name": "tiles", "patch_size": 4, "pool_size": 2, "image_size": 16, "max_tiles": 4}
    with pytest.warns(UserWarning, match="without word maps: there is no map over image 1: the geometry 'tiles' shows it in"):
        answer_one(world, tmp_path, geometry)
    assert (tmp_path / "answers.jsonl").exists() and not (tmp_path / "word_maps").exists()


def refuse(*args, **kwargs):
    raise LitEveError("it has none")


def test_the_commit_of_the_code():
    found = environment()["versions"]["commit"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=micro.ROOT, capture_output=True, text=True)
    if head.returncode:
        assert found is None
    else:
        assert found.removesuffix("+changes") == head.stdout.strip() and found == commit()
