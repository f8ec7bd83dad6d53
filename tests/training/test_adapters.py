"""Adapters in trainings: what trains, one process and two, a kill, and the stage after it that starts from merged weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.models.checkpoints.loading import read_architecture
from lit_eve.models.checkpoints.merging import iterate_merged
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.cli import EveCLI
from tests.training.test_fsdp import arguments, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.world import scalars

KIND = {"model.decoder_kind": "{name: image_adapter, rank: 4}"}
ADAPTERS = {  # VoRA's pre-training
    "name": "adapters",
    "lr": 1e-3,
    "rules": [{"pattern": r"patch_embedding|projector|aligner|language_model.*\.lora_"}],
}


@pytest.fixture(scope="module")
def runs(mixed, tmp_path_factory):  # noqa: F811
    """VoRA's way: adapters first, then all merged weights; in one process and in two."""
    folder = tmp_path_factory.mktemp("stages")
    short = {"trainer.max_steps": 4}

    def commands(number: str, sharded: bool) -> list[list[str]]:
        first, second = folder / number / "adapters", folder / number / "merged"
        stage = {"model.stage": json.dumps(ADAPTERS), **KIND, **short}
        merge = {"model.decoder_kind": "{name: dense}", "model.lr": 1e-6, **short}
        return [
            arguments(mixed, first, "1_prealign", None, sharded, **stage),
            arguments(mixed, second, "2_pretrain", folder / "one" / "adapters", sharded, **merge),
        ]

    for command in commands("one", False):
        EveCLI(args=command)
    train(*commands("two", True))
    return folder


@pytest.mark.parametrize("stage", ["adapters", "merged"])
def test_two_processes_train_like_one(runs, stage):
    one, two = (runs / number / stage for number in ("one", "two"))
    for tag in ("train/loss", "train/gradient_norm", "val/loss"):
        expected, found = scalars(one, tag), scalars(two, tag)
        assert len(found) > 1 and found == pytest.approx(expected, rel=1e-4), tag
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_adapters_alone_train(runs, mixed):  # noqa: F811
    plain, after = load_file(mixed / "decoder" / "model.safetensors"), load_file(runs / "one/adapters/model/model.safetensors")
    adapters = {name: value for name, value in after.items() if ".lora_" in name}
    assert len(adapters) == 2 * 7 * 2 and all(value.any() for value in adapters.values())
    for name, value in plain.items():
        assert torch.equal(after[f"language_model.{name}"], value), name


def test_the_stage_after_starts_from_merged_weights(runs):
    source, merged = runs / "one/adapters", runs / "one/merged"
    config, _ = read_architecture(source)
    before, after = dict(iterate_merged(source, config)), load_file(merged / "model" / "model.safetensors")
    assert after.keys() == {name for name in before if not name.startswith("aligner.")}
    for name, value in after.items():  # at a rate that moves nothing
        assert_close(value, before[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert lit_eve.load(merged)[0].config.decoder_kind == {"name": "dense"}


def test_checkpoints_are_models_for_everyone(runs):
    for number in ("one", "two"):
        run = runs / number / "adapters"
        exported = load_file(run / "model" / "model.safetensors")
        for model in (lit_eve.load(run)[0], lit_eve.load(find_checkpoint(run))[0]):
            assert all(torch.equal(model.state_dict()[name], value) for name, value in exported.items())
        lit_eve.load(find_checkpoint(run), merge=True)


def test_resumed_is_as_never_stopped(runs, mixed, tmp_path):  # noqa: F811
    again = shutil.copytree(runs / "one" / "adapters", tmp_path / "again")
    for path in (again / "checkpoints").iterdir():
        if int("".join(filter(str.isdigit, path.stem))) > 2:
            path.unlink()
    shutil.rmtree(again / "tensorboard")
    stage = {"model.stage": json.dumps(ADAPTERS), **KIND, "trainer.max_steps": 4}
    EveCLI(args=arguments(mixed, again, "1_prealign", None, False, **stage))
    found, expected = scalars(again, "train/loss"), scalars(runs / "one" / "adapters", "train/loss")
    assert found == {step: expected[step] for step in found} and 0 < len(found) < len(expected)
    weights, known = (load_file(run / "model" / "model.safetensors") for run in (again, runs / "one" / "adapters"))
    assert all(torch.equal(weights[name], value) for name, value in known.items())
