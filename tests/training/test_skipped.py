"""Runs in which nothing can be learnt, measured or asked end with a sentence; a loss is the loss of something."""

from __future__ import annotations

import csv
import json
import random

import pytest
from PIL import Image

from lit_eve.data import ShardWriter
from lit_eve.errors import LitEveError
from lit_eve.training.cli import EveCLI
from tests.training import world as micro

FEW = {"trainer.max_steps": 4, "trainer.num_sanity_val_steps": 0}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Ten samples, whose images show that they are broken when they are decoded; the last can be used."""
    folder, rng = tmp_path_factory.mktemp("data") / "broken", random.Random(0)
    with ShardWriter(folder) as shards:
        for number in range(10):
            file = folder / "noise.png"
            Image.frombytes("RGB", (64, 64), rng.randbytes(3 * 64 * 64)).save(file)
            talk = [{"from": "human", "value": "<image>small"}, {"from": "gpt", "value": "red"}]
            shards.write({"id": str(number), "conversations": talk}, [file.read_bytes()[: None if number == 9 else 2000]])
            file.unlink()
    return folder


def test_a_step_without_samples_has_no_loss(world, broken, tmp_path):
    more = FEW | {"data.train": broken, "data.max_bad_fraction": 1, "data.max_tokens": 128, "trainer.max_steps": 10}
    EveCLI(args=micro.arguments(world, tmp_path, **more))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [row["train/loss"] for row in rows if row["train/language_loss"]]
    assert len(rows) == 10 and len(losses) == 1 and float(losses[0]) > 0
    assert not any(row["train/loss"] for row in rows if not row["train/language_loss"])


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_validation_of_nothing_ends_the_run(world, broken, tmp_path, subcommand):
    more = {"data.validation": broken, "data.max_bad_fraction": 1, "trainer.limit_val_batches": 2, "answers.num_samples": 0}
    arguments = micro.arguments(world, tmp_path, **FEW, **more)
    with pytest.raises(LitEveError, match=r"^val: its batches hold no supervised token, .* in .*skipped.jsonl$"):
        EveCLI(args=[subcommand, *arguments[1:]])
    assert not (tmp_path / "model").exists()
    assert 0 < len((tmp_path / "skipped.jsonl").read_text().splitlines()) < 9


def test_a_prediction_without_an_answer_is_an_error(world, broken, tmp_path):
    arguments = micro.arguments(world, tmp_path, **{"data.test": broken, "data.limit_samples": 1})
    with pytest.raises(
        LitEveError, match=r"none of the 1 samples can be asked \(.*predictions.jsonl says why\); the first: 0: "
    ):
        EveCLI(args=["predict", *arguments[1:]])
    assert "error" in json.loads((tmp_path / "predictions.jsonl").read_text())
