"""Weights that change over a run: trained, logged, resumed and sharded as the schedule says."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from lit_eve.errors import ConfigError
from lit_eve.models.supervision import weight_at
from lit_eve.training.cli import EveCLI
from tests.training import world as micro
from tests.training.test_fsdp import arguments, cut, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.test_module import Sharded, _shard
from tests.training.test_supervision import ALIGNMENT, make
from tests.training.world import assert_equal_runs, run_until_stopped, scalars

FALLING, RISING = [[0.0, 2.0], [0.5, 0.0]], [[0.5, 0.0], [1.0, 1.0]]
ENTRIES = [ALIGNMENT | {"weight": FALLING}, {"name": "next_patch", "weight": RISING}]
SCHEDULES = {"alignment_loss": FALLING, "next_patch_loss": RISING}
KEYS = {"model.supervision": str(ENTRIES), "model.aligner": "null", "trainer.max_steps": 10, "trainer.log_every_n_steps": 1}


class Counted(Callback):
    """How often the teacher looked at images in the training, by optimizer step."""

    def __init__(self) -> None:
        self.looks: dict[int, int] = {}

    def on_train_start(self, trainer, module):
        def look(*_):
            if trainer.training:
                self.looks[trainer.global_step] = self.looks.get(trainer.global_step, 0) + 1

        module.model.teacher.register_forward_hook(look)


@pytest.fixture(scope="module")
def whole(mixed, tmp_path_factory):  # noqa: F811
    """A run with schedules that was never stopped, and how often the teacher looked."""
    run = tmp_path_factory.mktemp("scheduled") / "whole"
    counted = Counted()
    command = arguments(mixed, run, "1_prealign", None, sharded=False, **KEYS)

    class Counting(EveCLI):
        def instantiate_trainer(self, **kwargs):
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(counted)
            return trainer

    Counting(args=command)
    return run, counted.looks


def test_every_step_has_the_weight_of_its_place_in_the_run(whole):
    run, looks = whole
    language, loss = scalars(run, "train/language_loss"), scalars(run, "train/loss")
    assert list(loss) == list(range(1, 11))
    for name, schedule in SCHEDULES.items():
        assert scalars(run, f"weight/{name}") == pytest.approx({s: weight_at(schedule, (s - 1) / 10) for s in loss})
    terms = {name: scalars(run, f"train/{name}") for name in SCHEDULES}
    for step, total in loss.items():
        weights = {name: weight_at(schedule, (step - 1) / 10) for name, schedule in SCHEDULES.items()}
        expected = language[step] + sum(weight * terms[name].get(step, 0.0) for name, weight in weights.items())
        assert total == pytest.approx(expected, rel=1e-5)
        for name, weight in weights.items():
            assert weight or step not in terms[name], "what is not run is not logged"
    assert set(terms["alignment_loss"]) == {1, 2, 3, 4, 5} and set(terms["next_patch_loss"]) == {7, 8, 9, 10}
    assert looks and set(looks) == {0, 1, 2, 3, 4}, "then the teacher does not look any more"


def test_a_validation_has_the_weights_of_its_moment(whole):
    run, _ = whole
    parts = {name: scalars(run, f"val/{name}") for name in ("loss", "language_loss", "next_patch_loss")}
    last = max(parts["loss"])
    expected = parts["language_loss"][last] + weight_at(RISING, last / 10) * parts["next_patch_loss"][last]
    assert last == 10 and parts["loss"][last] == pytest.approx(expected, rel=1e-5)


def test_stopped_and_called_again(whole, mixed, tmp_path):  # noqa: F811
    run = tmp_path / "again"
    command = arguments(mixed, run, "1_prealign", None, sharded=False, **KEYS)
    run_until_stopped(command, step=4)
    EveCLI(args=command)
    tags = ("train/loss", *(f"{kind}/{name}" for kind in ("train", "weight") for name in SCHEDULES), "val/loss")
    assert_equal_runs(run, whole[0], tags, ("model.safetensors", "aligner.safetensors", "next_patch.safetensors"))


@pytest.mark.slow
def test_two_processes_train_like_one(whole, mixed, tmp_path):  # noqa: F811
    """One line for all steps, and a checkpoint in the middle of it, behind which one of its terms is not run any more."""
    two, again = tmp_path / "two", tmp_path / "again"
    command = lambda run: arguments(mixed, run, "1_prealign", None, True, **KEYS | {"trainer.log_every_n_steps": 10})  # noqa: E731
    train(command(two))
    train(command(cut(two, again, 6)))
    for name in SCHEDULES:
        values = scalars(whole[0], f"train/{name}").values()
        assert scalars(two, f"train/{name}") == {10: pytest.approx(sum(values) / len(values), rel=0.05)}, (
            "over the images of the steps that had it"
        )
    for tag in ("train/loss", "train/language_loss", *(f"train/{name}" for name in SCHEDULES)):
        assert scalars(again, tag) == scalars(two, tag), tag
    for file in ("model.safetensors", "aligner.safetensors", "next_patch.safetensors"):
        ours, resumed, theirs = (load_file(folder / "model" / file) for folder in (two, again, whole[0]))
        assert all(torch.allclose(ours[key], value, rtol=1e-3, atol=1e-4) for key, value in theirs.items()), file
        assert all(torch.equal(ours[key], value) for key, value in resumed.items()), file


def test_data_parallel_processes_wait_for_no_gradient(world, tmp_path):
    """DDP refuses a second step if a weight had no gradient in the first."""
    module = make(world, [ALIGNMENT | {"weight": 0.0}, {"name": "next_patch", "weight": RISING}])
    module.configure_model()
    batches = micro.make_batches(module, [[[[1]], [[2]]]] * 3)
    pairs = [_shard(batches[i : i + 2]) for i in range(0, len(batches), 2)]
    trainer = micro.trainer(tmp_path, devices=2, strategy="ddp_fork")
    trainer.fit(make(world, [ALIGNMENT | {"weight": 0.0}, {"name": "next_patch", "weight": RISING}]), Sharded(pairs, 2))


def test_a_bad_schedule_is_refused_by_its_key(world):
    with pytest.raises(ConfigError, match=r"model.supervision: the weight of 'next_patch' .* the parts must grow"):
        make(world, [{"name": "next_patch", "weight": [[0.5, 1.0], [0.2, 0.0]]}], teacher=None)
