"""Supervisions in trainings: which keys go together, what goes on from stage to stage, resumed and sharded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.errors import ConfigError
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.cli import EveCLI
from tests.training import world as micro
from tests.training.test_fsdp import arguments, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.world import assert_equal_runs, assert_near_runs, run_until_stopped, scalars

ALIGNMENT = {"name": "patch_alignment", "aligner": {"name": "layerwise", "layer_interval": 1, "num_heads": 4}}
NEXT, DISTILLATION = {"name": "next_patch", "weight": 0.5}, {"name": "distillation", "weight": 2.0}
MASKED = {"name": "masked_patches", "ratio": [0.1, 0.6], "weight": 0.2}
ALL = [ALIGNMENT, NEXT, DISTILLATION, MASKED]
LOSSES = {"alignment_loss": 1.0, "next_patch_loss": 0.5, "distillation_loss": 2.0, "masked_patches_loss": 0.2}
FILES = ("aligner.safetensors", "next_patch.safetensors", "distillation.safetensors", "masked_patches.safetensors")
KEYS = {"model.supervision": str(ALL), "model.aligner": "null"}


def make(world, supervision, **kwargs):
    return micro.make_module(world, supervision=supervision, **{"aligner": None} | kwargs)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"supervision": [{"name": "nothing"}]},
            "model.supervision: unknown supervision 'nothing'; known: .*distillation",
        ),
        ({"supervision": [{"name": "distillation", "layers": 3}]}, "model.supervision: supervision 'distillation' has no arg"),
        ({"supervision": [ALIGNMENT], "teacher": None}, "model.supervision: 'patch_alignment' needs model.teacher"),
        ({"supervision": [NEXT]}, "model.teacher: nothing in model.supervision looks at it; set it to null"),
        ({"supervision": []}, "model.teacher: nothing in model.supervision looks at it"),
        (
            {"supervision": [ALIGNMENT], "aligner": ALIGNMENT["aligner"]},
            "model.aligner: beside model.supervision it stands in the entry patch_alignment there, as 'aligner'",
        ),
        (
            {"supervision": [DISTILLATION], "alignment_weight": 0.1},
            "model.alignment_weight: beside model.supervision .* as 'weight'",
        ),
    ],
)
def test_keys_that_do_not_go_together(world, keys, message):
    with pytest.raises(ConfigError, match=message):
        make(world, **keys)


def test_distillation_needs_a_decoder_that_is_deep_enough(world):
    module = make(world, [DISTILLATION], teacher_layer=3)
    with pytest.raises(ConfigError, match="model.supervision 'distillation': .*hidden state 3 .* a decoder of 2 layers"):
        module.blueprint.check()


@pytest.mark.parametrize(("entries", "teacher"), [([NEXT], None), (ALL, True), ([], None)], ids=str)
def test_heads_are_the_same_whatever_was_drawn_before(world, entries, teacher):
    keys = {} if teacher else {"teacher": None}
    states = []
    for _ in range(2):
        module = make(world, entries, **keys)
        torch.rand(len(states) + 1)
        module.blueprint.check()
        states.append(module.blueprint.build().state_dict())
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    parts = {key.split(".")[0] for key in states[0]} - {"language_model", "patch_embedding", "projector"}
    assert parts == (
        {"aligner", "next_patch", "distillation", "masked_patches"} if teacher else {"next_patch"} if entries else set()
    )


def test_the_loss_does_not_depend_on_how_batches_are_cut(world, tmp_path):
    results = []
    for windows in ([[[[1, 0], [2, 1]]]], [[[[1, 0]], [[2, 1]]]]):
        module = make(world, ALL)
        module.configure_model()
        batches = micro.make_batches(module, windows)
        trainer = micro.trainer(tmp_path, accumulate_grad_batches=len(windows[0]))
        trainer.fit(module, micro.loader(batches))
        results.append((module.state_dict(), dict(trainer.callback_metrics)))
    for name, value in results[0][0].items():
        assert_close(results[1][0][name], value, rtol=1e-3, atol=1e-4, msg=name)
    for name in LOSSES:
        assert_close(results[0][1][f"train/{name}"], results[1][1][f"train/{name}"], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def first(mixed, tmp_path_factory):  # noqa: F811
    """A finished stage 1 with all supervisions, in one process."""
    run = tmp_path_factory.mktemp("supervised") / "one"
    EveCLI(args=arguments(mixed, run, "1_prealign", None, sharded=False, **KEYS))
    return run


def test_all_is_logged_and_saved(first):
    for split in ("train", "val"):
        parts = {name: scalars(first, f"{split}/{name}") for name in (*LOSSES, "language_loss", "loss")}
        for step, loss in parts["loss"].items():
            weighted = sum(weight * parts[name][step] for name, weight in LOSSES.items() if step in parts[name])
            assert loss == pytest.approx(parts["language_loss"][step] + weighted, rel=1e-5)
    assert {file.name for file in (first / "model").glob("*.safetensors")} == {"model.safetensors", *FILES}
    start = make(first.parent, ALL, decoder=None, patch_embedding=None, geometry=None, teacher="x", init_from=str(first))
    assert start.blueprint.config.supervision == ALL


def test_loaded_with_and_without_its_heads(first):
    bare, processor = lit_eve.load(first)
    assert not bare.supervisions and bare.teacher is None
    model, _ = lit_eve.load(first, teacher=True)
    for file in FILES:
        part = file.removesuffix(".safetensors")
        stored, ours = load_file(first / "model" / file), getattr(model, part).state_dict()
        assert stored.keys() == ours.keys() and all(torch.equal(ours[key], value) for key, value in stored.items())
    other, _ = lit_eve.load(find_checkpoint(first), teacher=True)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_later_stage_goes_on_with_the_heads_it_names(first, mixed):  # noqa: F811
    nothing_new = dict.fromkeys(("decoder", "patch_embedding", "geometry"))
    kept, _ = lit_eve.load(first, teacher=True)
    later = make(mixed, [NEXT | {"weight": 3.0}], init_from=str(first), teacher=None, **nothing_new)
    later.blueprint.check()
    model = later.blueprint.build()
    assert list(model.supervisions) == ["next_patch"] and model.aligner is None
    assert torch.equal(model.next_patch.weight, kept.next_patch.weight)
    plain = make(mixed, None, init_from=str(first), teacher=None, **nothing_new).blueprint
    plain.check()
    assert plain.build().supervisions == {} and plain.config.supervision is None
    aligned = make(mixed, None, init_from=str(first), **nothing_new).blueprint
    aligned.check()
    model = aligned.build()
    assert list(model.supervisions) == ["aligner"]
    assert torch.equal(model.aligner.input_layer.weight, kept.aligner.input_layer.weight)


def test_stopped_and_called_again(first, mixed, tmp_path):  # noqa: F811
    again = tmp_path / "again"
    command = arguments(mixed, again, "1_prealign", None, sharded=False, **KEYS)
    run_until_stopped(command, step=3)
    assert not (again / "model").exists()
    EveCLI(args=command)
    tags = ("train/loss", *(f"train/{name}" for name in LOSSES), "train/gradient_norm", "val/loss")
    assert_equal_runs(again, first, tags, ("model.safetensors", *FILES))


@pytest.mark.slow
def test_two_processes_train_like_one(first, mixed, tmp_path):  # noqa: F811
    two = tmp_path / "two"
    train(arguments(mixed, two, "1_prealign", None, sharded=True, **KEYS))
    tags = ("train/loss", *(f"train/{name}" for name in LOSSES), "train/gradient_norm")
    assert_near_runs(two, first, tags, FILES)
