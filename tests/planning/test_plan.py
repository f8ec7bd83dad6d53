"""lit-eve plan: FLOPs of real epochs, counted and assumed data, and what it prints and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_eve.cli import main
from lit_eve.data import model_inputs
from lit_eve.errors import ConfigError
from lit_eve.planning.gpus import get_gpu
from lit_eve.planning.plan import make_plan
from lit_eve.planning.typical_data import typical_epoch
from lit_eve.training.recipe import read_recipe
from tests.training import world as micro

A100 = get_gpu("a100-40g")
EXPERIMENTS = micro.ROOT / "experiments"
PRETRAIN = str(EXPERIMENTS / "eve_smollm2_360m/2_pretrain.yaml")


def micro_recipe(world, tmp_path, **overrides):
    parts = {"stage": "model", "max_steps": "trainer"}
    overrides = {f"{parts.get(key, 'data')}.{key}": value for key, value in overrides.items()}
    return read_recipe(*micro.arguments(world, tmp_path / "run", **overrides)[1:])


# ---- numbers


def test_flops_are_those_of_a_real_epoch(world, tmp_path):
    recipe = micro_recipe(world, tmp_path, stage="pretrain", num_workers=0)
    plan = make_plan(recipe, 1, A100, compare=False)
    module, data = recipe.module, recipe.data
    module.configure_model()
    data.attach(module.processor, module.teacher_grid)
    data.setup("fit")
    samples, operations = 0, dict.fromkeys(("linear", "attention"), 0)
    for batch in data.train_dataloader():
        samples += len(batch["sample_ids"])
        with FlopCounterMode(display=False) as counter:
            module.model(**model_inputs(batch)).loss.backward()
        for operation, count in counter.get_flop_counts()["Global"].items():
            operations["attention" if "attention" in str(operation) else "linear"] += count
    data.teardown("fit")
    assert samples == plan.steps.samples
    padded = {"decoder": 1 / (1 - plan.steps.padding)}  # the decoder's linear layers also run over padding
    # Attention is compared in test_flops.py: torch counts pairs of tokens that do not see each other.
    linear = sum(f.total * padded.get(part, 1) for part, f in plan.flops.items() if part != "attention") * samples
    images = plan.steps.images_per_sample * samples
    linear -= images * 2 * 4 * 16 * 65**2  # the teacher's: two layers of width 16, 8 x 8 patches and the class token
    assert linear == pytest.approx(operations["linear"], rel=0.02)


def test_losses_on_a_schedule_count_for_their_steps(world, tmp_path, capsys):
    def arguments(aligned, predicted):
        aligner = {"name": "layerwise", "layer_interval": 1}
        losses = [
            {"name": "patch_alignment", "weight": aligned, "aligner": aligner},
            {"name": "next_patch", "weight": predicted},
        ]
        more = ["--model.aligner=null", f"--model.supervision={json.dumps(losses)}"]
        return [*micro.arguments(world, tmp_path / "run")[1:], *more]

    scheduled = arguments([[0.0, 1.0], [0.5, 0.0]], [[0.75, 0.0], [1.0, 1.0]])
    always, plan, off = (
        make_plan(read_recipe(*given), 1, A100, compare=False) for given in (arguments(1.0, 0.3), scheduled, arguments(0, 1.0))
    )
    assert plan.shares == {"aligner": 0.5, "next_patch": 0.25, "teacher": 0.5} and always.shares == {}
    for part, flops in always.flops.items():
        assert plan.flops[part].total == pytest.approx(plan.shares.get(part, 1) * flops.total), part
    assert plan.memory == always.memory  # there is a time at which all are on
    assert off.flops["teacher"].total == off.flops["aligner"].total == 0 < off.flops["next_patch"].total
    _, recipe, *settings = scheduled
    assert main(["plan", recipe, "--gpus=1", *(f"--set={setting.removeprefix('--')}" for setting in settings)]) == 0
    shown = capsys.readouterr().out
    assert "next_patch (in 25% of the steps)" in shown and "teacher (in 50% of the steps)" in shown


def test_counted_data(world, tmp_path):
    recipe = micro_recipe(world, tmp_path)
    plan = make_plan(recipe, 2, A100, compare=False)
    data = recipe.data
    data.attach(recipe.processor, recipe.module.teacher_grid)
    data.setup("fit")
    rows = data.plan("train")
    steps = plan.steps
    assert (steps.samples, steps.rows, steps.steps) == (60, len(rows), -(-len(rows) // 2))
    assert steps.data == "counted in 1 shards"
    lengths = data._tables["train"].length
    assert steps.tokens_per_sample == pytest.approx(lengths.mean()) and steps.padding == rows.padding(lengths, 256)
    # what a row must hold at most, from the batches themselves
    batches = list(data.train_dataloader())
    data.teardown("fit")
    geometry = recipe.module.geometry
    heaviest = typical_epoch(recipe, geometry).heaviest_row(geometry, recipe.data.max_tokens)
    assert heaviest["images"] == max(len(batch["image_grid_hw"]) for batch in batches)
    assert heaviest["patches"] == max(len(batch["pixel_values"]) for batch in batches)
    places = [(len(batch["cu_seqlens"]) - 1) * batch["max_seqlen"] for batch in batches]  # side by side
    assert heaviest["samples"] * heaviest["longest"] == max(places) and heaviest["longest"] < recipe.data.max_tokens
    assert heaviest["targets"] == max(len(batch["target_positions"]) for batch in batches)


def test_assumed_data():
    recipe = read_recipe(PRETRAIN)
    epoch = typical_epoch(recipe, recipe.module.blueprint.skeleton(planned=True).geometry)
    assert (epoch.origin, epoch.num_samples) == ("assumed captions", 33_000_000)
    assert 1 - epoch.padding == pytest.approx(epoch.samples_per_row * epoch.lengths.mean() / 2048, rel=1e-3)
    assert np.median(epoch.num_targets + 1) == pytest.approx(90, abs=1)
    image_tokens = epoch.lengths - epoch.num_targets - 1
    # by hand: 4:3 18 * 25 + 1, 3:4 24 * 19 + 1, 3:2 16 * 25 + 1, 2:3 24 * 17 + 1, 16:9 14 * 25 + 1, 1:1 24 * 25 + 1
    tokens = {451: 0.4, 457: 0.1, 401: 0.25, 409: 0.08, 351: 0.07, 601: 0.1}
    values, counts = np.unique(image_tokens, return_counts=True)
    assert dict(zip(values.tolist(), (counts / counts.sum()).tolist(), strict=True)) == pytest.approx(tokens, abs=2e-3)
    other = typical_epoch(read_recipe(PRETRAIN), recipe.module.blueprint.skeleton(planned=True).geometry, 1000)
    assert other.num_samples == 1000 and other.num_rows == pytest.approx(1000 / epoch.samples_per_row, abs=1)


def test_days_follow_from_the_flops(world, tmp_path):
    recipe = read_recipe(PRETRAIN)
    plan = make_plan(recipe, 16, A100, mfu=0.5, compare=False)
    work = sum(f.total for f in plan.flops.values()) * 33e6
    assert plan.days == pytest.approx(work / (16 * 312e12 * 0.5) / 86400, rel=1e-3)
    assert plan.steps.steps == pytest.approx(33e6 / plan.steps.samples_per_step, abs=1)
    # 6 FLOPs per parameter and token, and the teacher: a check from outside
    decoder = 6 * (361_821_120 - 49152 * 960) * plan.steps.tokens_per_sample
    assert plan.flops["decoder"].total == pytest.approx(decoder, rel=0.01)
    few, all_steps = (
        make_plan(micro_recipe(world, tmp_path, **limit), 1, A100, compare=False).steps.steps
        for limit in ({"max_steps": 3}, {})
    )
    assert few == 3 < all_steps


def test_stage_1_keeps_nothing_for_the_decoder():
    plan = make_plan(read_recipe(str(EXPERIMENTS / "eve_smollm2_360m/1_prealign.yaml")), 16, A100, compare=False)
    trained = sum(part.trainable for part in plan.parameters.values())
    assert plan.parameters["language_model"].trainable == 0
    assert plan.memory.gradients == -(-trained * 4 // 16)
    assert plan.memory.optimizer == pytest.approx(2 * plan.memory.gradients, rel=1e-4)  # two moments, and counters
    # CLIP-L without its last layer and the norm behind it, and the numbers of its positions
    assert plan.memory.teacher == 290_909_184 * 2 + 577 * 8


# ---- the command


def planned_json(capsys, *arguments) -> dict:
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_json(capsys):
    plan = planned_json(capsys, PRETRAIN, "--gpus", "8", "--gpu", "RTX4090", "--set", "data.rows=2")[PRETRAIN]
    assert plan["gpu"]["name"] == "GeForce RTX 4090" and plan["steps"]["accumulated"] == 9
    assert plan["fits"] == (plan["memory"]["total"] <= plan["gpu"]["memory_gib"] * 2**30)
    assert plan["memory"]["activations"] < plan["memory_other"]["activations"] / 3  # without checkpointing
    for memory in (plan["memory"], plan["memory_other"]):
        assert memory["total"] == sum(size for kind, size in memory.items() if kind != "total")
    assert plan["flops"]["decoder"]["backward"] == 2 * plan["flops"]["decoder"]["forward"]


@pytest.mark.parametrize("form", [["--json"], []])
def test_shards_that_were_never_indexed(world, tmp_path, capsys, form):
    shards = micro.make_shards(tmp_path / "shards", 7)
    _, _, recipe, *overrides = micro.arguments(world, tmp_path / "run", **{"data.train": shards, "trainer.strategy": "ddp"})
    overrides = [f"--set={override.removeprefix('--')}" for override in overrides]
    assert main(["plan", recipe, "--gpus=2", *form, *overrides]) == 0
    shown = capsys.readouterr().out
    assert "counted in 1 shards" in shown
    if form:
        assert json.loads(shown)[recipe]["steps"]["samples"] == 7


def test_a_template_that_is_not_known_is_named_by_its_key(world, tmp_path, capsys):
    _, _, recipe, *overrides = micro.arguments(world, tmp_path / "run", **{"data.template": "foo"})
    assert main(["plan", recipe, "--gpus=1", *(f"--set={override.removeprefix('--')}" for override in overrides)]) == 2
    assert "data.template: unknown template 'foo'" in capsys.readouterr().err


def test_tables(capsys):
    assert main(["plan", PRETRAIN, "--gpu", "h100"]) == 0
    shown = capsys.readouterr().out
    for text in ("16 x H100 SXM", "361,821,120", "with checkpointing", "without checkpointing", "33,000,000", "about 9 days"):
        assert text in shown
    assert "It also fits without checkpointing" in shown and "--set model.gradient_checkpointing=false" in shown
    assert "assumed; --mfu" in shown and "GPU hours" in shown and "150 KB an image" in shown


@pytest.mark.slow
def test_a_table_of_several_recipes(capsys):
    """tests/test_experiments.py compares one with the documented lines."""
    first = str(EXPERIMENTS / "eve_smollm2_360m/1_prealign.yaml")
    assert main(["plan", first, PRETRAIN]) == 0
    shown = capsys.readouterr().out
    assert "16 x A100 40 GB" in shown
    lines = [line.split() for line in shown.splitlines() if "smollm2" in line]
    assert [line[3] for line in lines] == ["16M", "33M"] and {line[-3] for line in lines} == {"yes"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h1000"], "unknown GPU 'h1000'; did you mean h100"),
        (["--gpu", "mi300x"], "unknown GPU 'mi300x'; known: a100-40g, a100-80g, h100,"),
        (["--gpu", "A100"], "GPU 'A100': there is a100-40g and a100-80g; say which"),
        (["--gpus", "32"], "data.global_batch = 144 rows cannot be shared out to 32 GPUs x data.rows = 3; choose"),
        (["--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["--mfu", "40"], "--mfu must lie between 0 and 1, got 40"),
        (["--samples", "0"], "--samples must be a number of at least 1, got 0"),
        (["--samples", "nan"], "--samples must be a number of at least 1, got nan"),
        (["--samples", "inf"], "--samples must be a number of at least 1, got inf"),
        (["--set", "trainer.max_steps=0"], "trainer.max_steps = 0: there is no training to plan"),
        (["--set", "trainer.max_epochs=0"], "trainer.max_epochs = 0: there is no training to plan"),
        (["--set", "trainer.max_epochs=-5"], "trainer.max_epochs = -5: there is no training to plan"),
        (
            ["--set", "trainer.strategy={class_path: lit_eve.training.FSDP2Strategy, init_args: {replicas: 0}}"],
            "trainer.strategy: 16 GPUs cannot be shared out to replicas = 0",
        ),
        (["--set", "data=lit_eve.evaluation.BenchmarkData"], "data: a BenchmarkData is no EveDataModule"),
        (["--set", "data.rows"], "--set takes KEY=VALUE, as in data.rows=2, got 'data.rows'"),
        (["--set", "data.rosw=2"], "rosw"),
        (["--set", "data.train=shards/mine"], "there are no shards in 'shards/mine' yet; say with --samples how many"),
        (["--set", "data.max_tokens=500"], "data.max_tokens: an image takes up to 601 tokens, and a row has 500"),
        (["--set", "model.decoder=no/where"], "model.decoder: 'no/where'"),
        (["--set", "trainer.max_epochs=-1"], "the training has no end: set trainer.max_epochs or trainer.max_steps"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["experiments/nano/2_pretrain.yaml", "--set", "model.init_from=runs/no/where"], "there is no 'runs/no/where' yet"),
    ],
)
def test_what_is_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(micro.ROOT)
    assert main(["plan", PRETRAIN, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_an_unknown_set_needs_a_number(world, tmp_path):
    recipe = micro_recipe(world, tmp_path, train="shards/mine")
    with pytest.raises(ConfigError, match="--samples"):
        make_plan(recipe, 16, A100)
    assert make_plan(recipe, 16, A100, num_samples=1e6, compare=False).steps.samples == 1_000_000
    assert torch.get_default_dtype() == torch.float32
