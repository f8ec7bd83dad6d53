"""A run of an earlier version is loaded and goes on, with the numbers that it had then: tests/data/run_0.1/README.md."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.processing import EveV1Geometry
from lit_eve.training.cli import EveCLI
from tests.training import world as micro

DATA = micro.ROOT / "tests" / "data" / "run_0.1"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the paths of the run are relative
    micro.make_decoder(Path("world/decoder"))
    micro.make_shards(Path("world/train"), 60)
    micro.make_shards(Path("world/validation"), 10, seed=1)
    return tmp_path


@torch.no_grad()
@pytest.mark.parametrize("name", ["run", "run/model", "run/checkpoints/step00000004.ckpt"])
def test_it_is_loaded(place, name):
    model, processor = lit_eve.load(name)
    assert model.geometry == processor.geometry == EveV1Geometry(patch_size=4, pool_size=2, image_size=64, cells=8)
    image = Image.new("RGB", (90, 40), (200, 30, 60))
    question = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    logits = model(**processor(conversation=[{"role": "user", "content": question}])).logits
    assert_close(logits[0, -8:], load_file("expected.safetensors")["logits"], rtol=0, atol=1e-5)


def test_it_goes_on(place):
    EveCLI(args=micro.arguments(Path("world"), Path("run"), **{"trainer.max_steps": 8}))
    found, expected = (list(csv.DictReader(io.StringIO(Path(f).read_text()))) for f in ("run/metrics.csv", "continued.csv"))
    assert not {"data/tokens", "speed/seconds"} & found[0].keys(), "what it began with is not known"
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [str(step) for step in range(1, 9)]
    for key in ("train/language_loss", "train/alignment_loss", "train/loss", "val/alignment_loss"):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[key] == theirs[key] or float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-4), (
                key,
                ours["step"],
            )
