"""A teacher that trains along, in trainings: resumed, sharded, taken over by the next stage."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lit_eve.training.cli import EveCLI
from tests.training import world as micro
from tests.training.test_fsdp import arguments, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.world import assert_equal_runs, assert_near_runs, run_until_stopped

ENTRIES = [{"name": "trained_teacher", "aligner": {"name": "layerwise", "layer_interval": 1, "num_heads": 4}}]
KEYS = {"model.supervision": str(ENTRIES), "model.aligner": "null"}
FILE = "trained_teacher.safetensors"


@pytest.fixture(scope="module")
def first(mixed, tmp_path_factory):  # noqa: F811
    """A finished stage 1, in one process."""
    run = tmp_path_factory.mktemp("trained_teacher") / "one"
    EveCLI(args=arguments(mixed, run, "1_prealign", None, sharded=False, **KEYS))
    return run


def test_it_learns_and_the_next_stage_goes_on_with_it(first, mixed):  # noqa: F811
    keys = dict.fromkeys(("decoder", "patch_embedding", "geometry", "aligner"))
    later = micro.make_module(mixed, supervision=ENTRIES, init_from=str(first), **keys).blueprint
    later.check()
    model = later.build()
    saved = load_file(first / "model" / FILE)
    ours, teacher = model.trained_teacher.state_dict(), model.teacher.backbone.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in saved.items())
    moved = [key for key, value in teacher.items() if not torch.equal(saved[f"tower.{key}"], value)]
    assert len(moved) > len(teacher) / 2


def test_stopped_and_called_again(first, mixed, tmp_path):  # noqa: F811
    again = tmp_path / "again"
    command = arguments(mixed, again, "1_prealign", None, sharded=False, **KEYS)
    run_until_stopped(command, step=3)
    EveCLI(args=command)
    assert_equal_runs(again, first, ("train/loss", "train/alignment_loss", "val/loss"), (FILE,))


@pytest.mark.slow
def test_two_processes_train_like_one(first, mixed, tmp_path):  # noqa: F811
    two = tmp_path / "two"
    train(arguments(mixed, two, "1_prealign", None, sharded=True, **KEYS))
    assert_near_runs(two, first, ("train/loss", "train/alignment_loss", "train/gradient_norm"), (FILE,))
