"""NEO in trainings: layers in front, and channels for row and column, under Muon; one process and two; what trains."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.models.positions.native_attention import NEW
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.cli import EveCLI
from tests.training.test_fsdp import arguments, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.world import scalars

STAGE = {  # its pre-training
    "name": "pre_buffer",
    "lr": 1e-3,
    "rules": [
        {"pattern": "patch_embedding|projector|aligner"},
        {"pattern": r"language_model\.model\.layers\.0\."},
        {"pattern": r"language_model.*(_proj_hw|_norm_[hw])\."},
    ],
}
PARTS = {
    "model.decoder_kind": "{name: pre_buffer, layers: 1}",
    "model.positions": "{name: neo}",
    "model.image_attention": "{name: bidirectional}",
    "model.stage": json.dumps(STAGE),
    "model.optimizer": "{name: muon}",
    "trainer.max_steps": 4,
}


@pytest.fixture(scope="module")
def runs(mixed, tmp_path_factory):  # noqa: F811
    """In one process."""
    folder = tmp_path_factory.mktemp("neo")
    EveCLI(args=arguments(mixed, folder / "one", "1_prealign", None, False, **PARTS))
    return folder


@pytest.mark.slow
def test_two_processes_train_like_one(runs, mixed):  # noqa: F811
    """Of the two, one has images and the other none."""
    train(arguments(mixed, runs / "two", "1_prealign", None, True, **PARTS))
    models_for_everyone(runs / "two")
    for tag in ("train/loss", "train/gradient_norm", "val/loss"):
        expected, found = scalars(runs / "one", tag), scalars(runs / "two", tag)
        assert len(found) > 1 and found == pytest.approx(expected, rel=1e-4), tag
    expected, found = (load_file(runs / number / "model/model.safetensors") for number in ("one", "two"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_what_trains(runs, mixed):  # noqa: F811
    """All that is new, from its beginning on; the language model's weights stay, one layer further up."""
    before, after = load_file(mixed / "decoder/model.safetensors"), load_file(runs / "one/model/model.safetensors")
    for name, value in before.items():
        moved = name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1.")
        assert torch.equal(after[f"language_model.{moved}"], value), name
    for name, value in after.items():
        if name.split(".")[-2].startswith("k_norm_") and ".layers.0." not in name:
            assert value.abs().max() > 1e-5, f"{name} begins at 0 and trains"
    assert len([name for name in after if name.split(".")[-2] in NEW]) == 3 * len(NEW)


def test_checkpoints_are_models_for_everyone(runs):
    models_for_everyone(runs / "one")


def models_for_everyone(run) -> None:
    exported = load_file(run / "model" / "model.safetensors")
    for model in (lit_eve.load(run)[0], lit_eve.load(find_checkpoint(run))[0]):
        assert model.config.positions == {"name": "neo"} and model.config.text_config.num_hidden_layers == 3
        assert all(torch.equal(model.state_dict()[name], value) for name, value in exported.items())
