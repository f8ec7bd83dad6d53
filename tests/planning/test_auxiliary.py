"""What a subclass of LitEve adds is planned: its parameters are counted, and the stage may name them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from lit_eve.cli import main
from lit_eve.errors import ConfigError
from lit_eve.planning import ways
from lit_eve.planning.gpus import GIB, Gpu
from lit_eve.planning.memory import Holdings, Layout, Measured
from lit_eve.planning.plan import Parameters, make_plan
from lit_eve.training import LitEve
from lit_eve.training.auxiliary import planned_auxiliaries
from lit_eve.training.recipe import read_recipe
from tests.models import tiny
from tests.training import own_eve
from tests.training import world as micro

LARGE = Gpu("large", 1e4, 100, "large")
WEIGHT, BIAS = 32 * 3, 3  # of PixelEve's head
RULES = [{"pattern": "pixel_head.bias", "trainable": False}, {"pattern": "pixel_head|projector"}]


@pytest.fixture
def arguments(world, tmp_path):
    """A command line of the micro recipe: a subclass, and rules of its stage."""

    def make(kind: type[LitEve], rules: list[dict], **overrides) -> list[str]:
        stage = json.dumps({"name": "own", "lr": 1e-3, "rules": rules})
        settings = {
            "model_class": f"{kind.__module__}.{kind.__name__}",
            "model.stage": stage,
            "model.optimizer": '{"name": "adamw"}',
            "data.global_batch": 24,
        }
        return micro.arguments(world, tmp_path / "run", **settings, **overrides)[1:]

    return make


@pytest.mark.parametrize(("strategy", "gpus"), [("ddp", 2), ("fsdp2", 3)])
def test_parameters_gradients_and_states_are_counted(arguments, strategy, gpus):
    recipe = read_recipe(*arguments(own_eve.PixelEve, RULES, **{"trainer.strategy": strategy}))
    plan = make_plan(recipe, gpus, LARGE, compare=False)
    without = make_plan(
        read_recipe(*arguments(LitEve, [{"pattern": "projector"}], **{"trainer.strategy": strategy})),
        gpus,
        LARGE,
        compare=False,
    )
    assert plan.parameters == without.parameters | {"pixel_head": Parameters(WEIGHT, BIAS)}
    shards = gpus if strategy == "fsdp2" else 1
    assert plan.memory.weights - without.memory.weights == pytest.approx(4 * (WEIGHT + BIAS) / shards, abs=1)
    assert plan.memory.gradients - without.memory.gradients == pytest.approx(4 * WEIGHT / shards, abs=1)
    counter = 4  # of the steps
    assert plan.memory.optimizer - without.memory.optimizer == pytest.approx(2 * 4 * WEIGHT / shards + counter, abs=2)
    assert plan.memory.copies > without.memory.copies
    assert plan.needs.checkpoints > without.needs.checkpoints
    assert plan.flops == without.flops and (plan.unmeasured, without.unmeasured) == ("PixelEve", None)
    assert recipe.module.model is None and not hasattr(recipe.module, "pixel_head")


def test_copies_of_a_part_are_those_of_a_group_of_its_own():
    model, part = tiny.model("llama"), {"head": nn.Linear(10, 7, bias=False)}
    layout = Layout(4, True, 1, torch.float32, torch.bfloat16)
    plans = [Holdings(model, {"name": "adamw"}, own).memory(layout, Measured(0, 0)) for own in ({}, part)]
    assert plans[1].copies - plans[0].copies == 70 * 2 + 70 * 2  # gathered, and its gradient


def test_how_the_model_is_asked_is_measured(arguments, monkeypatch):
    asked = []
    forward = own_eve.EveForConditionalGeneration.forward

    def seen(self, *args, output_hidden_states=None, **kwargs):
        asked.append(output_hidden_states)
        return forward(self, *args, output_hidden_states=output_hidden_states, **kwargs)

    monkeypatch.setattr(own_eve.EveForConditionalGeneration, "forward", seen)
    make_plan(read_recipe(*arguments(own_eve.PixelEve, RULES)), 1, LARGE)
    assert asked == [True, True]


def test_ways_out_count_it_too(arguments, world, tmp_path, monkeypatch):
    names = []
    for name, changes in (
        ("shallow", {"num_hidden_layers": 1, "intermediate_size": 152}),
        ("narrow", {"intermediate_size": 48}),
    ):
        names.append(str(shutil.copytree(world / "decoder", tmp_path / name)))
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
    monkeypatch.setattr(ways, "decoder_names", lambda: names)
    rules = [*RULES, {"pattern": "language_model.model.layers.1"}]  # which the shallow one, the larger, does not have
    given = [own_eve.PixelEve, rules]
    narrow = make_plan(read_recipe(*arguments(*given, **{"model.decoder": names[1]})), 1, LARGE, compare=False).memory.total
    plan = make_plan(read_recipe(*arguments(*given)), 1, Gpu("small", narrow / GIB, 100, "small"))
    assert ways.Way((f"model.decoder={names[1]}",), 1, narrow) in plan.ways


def test_weights_are_on_the_meta_device_and_buffers_are_real(world):
    class Scaled(LitEve):
        def auxiliary_parts(self):
            head = nn.Linear(self.model.config.text_config.hidden_size, 3)
            head.register_buffer("scale", torch.ones(3))
            assert head.weight.is_meta and head.scale.tolist() == [1, 1, 1]
            return {"head": head}

    module = Scaled(decoder=str(world / "decoder"), geometry=tiny.GEOMETRY)
    (head,) = planned_auxiliaries(module, module.blueprint.skeleton().to(torch.bfloat16)).values()
    assert head.weight.is_meta and head.weight.dtype == torch.bfloat16


def test_a_part_that_needs_weights_is_refused(arguments):
    message = "ReadingEve.auxiliary_parts cannot be planned, as it needs more of the model than its shape: "
    with pytest.raises(ConfigError, match=message):
        make_plan(read_recipe(*arguments(own_eve.ReadingEve, RULES)), 1, LARGE)


def test_the_command_says_what_is_not_measured(arguments, capsys):
    _, recipe, *settings = arguments(own_eve.PixelEve, RULES)
    assert main(["plan", recipe, "--gpus=1", *(f"--set={setting.removeprefix('--')}" for setting in settings)]) == 0
    shown = capsys.readouterr().out
    assert "pixel_head" in shown
    assert "Not measured is what PixelEve.auxiliary_losses computes: its activations and FLOPs come on top." in shown
