"""What a plan says beyond memory and days: ways out where a recipe does not fit, and what must be there beside GPUs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lit_eve.cli import main
from lit_eve.errors import ConfigError
from lit_eve.planning import ways
from lit_eve.planning.gpus import GIB, GPUS, Gpu
from lit_eve.planning.plan import Plan, make_plan
from lit_eve.training.recipe import Recipe, read_recipe
from tests.training import world as micro

FEWER = {"data.rows": 4, "data.global_batch": 24, "trainer.strategy": "fsdp2"}


def gpu_with(num_bytes: float) -> Gpu:
    return Gpu("small", num_bytes / GIB, 100, "small")


@pytest.fixture(autouse=True)
def catalog(monkeypatch):
    """Without the well-known decoders, all of which are larger than the micro recipe's: to build them takes seconds."""
    monkeypatch.setattr(ways, "decoder_names", list)


@pytest.fixture
def read(world, tmp_path):
    """Reads the micro recipe, with some keys changed."""

    def recipe(*settings: str, **overrides) -> Recipe:
        given = micro.arguments(world, tmp_path / "run", **(FEWER | {"model.stage": "pretrain"} | overrides))
        return read_recipe(*given[1:], *(f"--{setting}" for setting in settings))

    return recipe


def size_of(recipe: Recipe, gpus: int = 1) -> int:
    """Bytes that it takes on each GPU."""
    return make_plan(recipe, gpus, gpu_with(1e12), compare=False).memory.total


def way_of(plan: Plan, gpus: int = 1) -> ways.Way:
    """The change that leaves the number of GPUs."""
    (way,) = [way for way in plan.ways if way.gpus == gpus and "lora" not in str(way.settings)]
    return way


def test_checkpointing_is_named_before_fewer_rows(read):
    recomputed = size_of(read("model.gradient_checkpointing=true"))
    plan = make_plan(read("model.gradient_checkpointing=false"), 1, gpu_with(recomputed))
    assert not plan.fits and plan.days is None and plan.gpu_hours is None and plan.needs.images_per_second is None
    assert way_of(plan) == ways.Way(("model.gradient_checkpointing=true",), 1, recomputed)


def test_as_many_rows_are_kept_as_fit(read):
    """Three of four do not share out 24 rows evenly with one GPU; two do, as one would."""
    two = size_of(read("model.gradient_checkpointing=true", "data.rows=2"))
    plan = make_plan(read("model.gradient_checkpointing=true", "data.global_batch=8"), 1, gpu_with(two))
    assert way_of(plan) == ways.Way(("data.rows=2",), 1, two)


def test_the_fewest_gpus_that_fit_are_named(read):
    recipe = read("model.gradient_checkpointing=true", "data.rows=1")
    three, two = size_of(recipe, 3), size_of(recipe, 2)
    assert three < two
    plan = make_plan(recipe, 1, gpu_with(three))
    assert plan.ways == (ways.Way((), 3, three),)
    assert make_plan(recipe, 3, gpu_with(three), compare=False).fits


def test_without_sharding_more_gpus_are_named_with_it(read):
    unsharded = read("model.gradient_checkpointing=true", "data.rows=1", "trainer.strategy=ddp")
    sharded = size_of(read("model.gradient_checkpointing=true", "data.rows=1"), 2)
    plan = make_plan(unsharded, 2, gpu_with(sharded))
    assert not plan.fits and way_of(plan, 2) == ways.Way(("trainer.strategy=fsdp2",), 2, sharded)


def test_the_largest_smaller_decoder_that_fits_is_named(read, world, tmp_path, monkeypatch):
    names = []
    for width in (16, 48, 96):
        names.append(str(shutil.copytree(world / "decoder", tmp_path / f"decoder{width}")))
        config = json.loads((Path(names[-1]) / "config.json").read_text())
        (Path(names[-1]) / "config.json").write_text(json.dumps(config | {"intermediate_size": width}))
    monkeypatch.setattr(ways, "decoder_names", lambda: names)
    recipe = read("model.gradient_checkpointing=true", "data.rows=1")
    smaller = size_of(read("model.gradient_checkpointing=true", "data.rows=1", f"model.decoder={names[1]}"))
    plan = make_plan(recipe, 1, gpu_with(smaller))
    assert way_of(plan) == ways.Way((f"model.decoder={names[1]}",), 1, smaller)  # 64 is the recipe's own


def test_nothing_is_named_where_nothing_helps(read, monkeypatch):
    monkeypatch.setattr(ways, "decoder_names", lambda: ["HuggingFaceTB/SmolLM2-360M-Instruct"])
    assert make_plan(read(), 1, gpu_with(2 * GIB)).ways == ()  # 2 GiB are set aside


# ---- the command


def command(world, tmp_path, recipes: int = 1) -> list[str]:
    """``plan`` of so many files like the micro recipe."""
    given = micro.arguments(world, tmp_path / "run", **(FEWER | {"model.stage": "pretrain"}))
    paths = [shutil.copy(given[2], tmp_path / f"{number}.yaml") for number in range(recipes)]
    settings = [f"--set={setting.removeprefix('--')}" for setting in given[3:]]
    return ["plan", *map(str, paths), "--gpus=1", "--gpu=l4", *settings, "--set=model.gradient_checkpointing=false"]


def test_what_does_not_fit_takes_no_days(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GPUS, "l4", gpu_with(2 * GIB))
    assert main(command(world, tmp_path, recipes=2)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-3:] for line in lines if f"{tmp_path.name}/" in " ".join(line)] == [["NO", "-", "-"]] * 2
    assert ["one", "after", "the", "other", "-", "-"] in lines


def test_a_way_is_shown_as_the_command_takes_it(read, world, tmp_path, monkeypatch, capsys):
    least = size_of(read("model.gradient_checkpointing=true", "data.rows=1"))
    monkeypatch.setitem(GPUS, "l4", gpu_with(least))
    assert main(command(world, tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "With one of these changes it does:" in shown and "does not fit" in shown
    assert "  --set model.gradient_checkpointing=true --set data.rows=1   (" in shown
    assert "It also fits" not in shown


# ---- beside GPUs


def test_gpu_hours_and_images_per_second(read):
    plan = make_plan(read(), 2, gpu_with(1e12), mfu=0.5, compare=False)
    assert plan.gpu_hours == pytest.approx(plan.days * 24 * 2)
    images = plan.steps.images_per_sample * plan.steps.samples_per_step * plan.steps.steps
    assert plan.needs.images_per_second == pytest.approx(images / (plan.days * 86400))


def test_disk_and_host_memory(read):
    recipe = read("data.num_workers=3", "data.rows=1", 'model.optimizer={"name": "adamw"}')
    plan = make_plan(recipe, 12, gpu_with(1e12), compare=False, num_samples=100)
    parts = [part for name, part in plan.parameters.items() if name != "teacher"]
    weights, trained = (sum(numbers) for numbers in zip(*((p.trainable + p.frozen, p.trainable) for p in parts), strict=True))
    counters = 2 * 4 * 200 * 12  # of Adam's steps, one for each of less than 200 parameters, on each GPU
    assert (
        0 <= plan.needs.checkpoints - 4 * (3 * weights + 2 * 2 * trained) < counters + 12 * 200 * 4 * 7
    )  # float32, rounded up
    copied = 8 * (plan.memory.weights + plan.memory.optimizer)
    assert plan.needs.host == 8 * (3 + 3) * GIB + max(copied, 12 * plan.memory.weights)
    assert plan.needs.data == round(plan.steps.images_per_sample * 100 * 150_000) and not plan.needs.data_counted


def test_shards_that_are_there_are_counted(read):
    recipe = read()
    plan = make_plan(recipe, 2, gpu_with(1e12), compare=False)
    shards = [shard for source in recipe.data.sources["train"] for shard in Path(source.path).glob("*.tar")]
    assert plan.needs.data_counted and plan.needs.data == sum(shard.stat().st_size for shard in shards)


# ---- adapters


def test_adapters_are_named_where_they_fit(read):
    """By a setting that can be given, which costs what was said."""
    pytest.importorskip("peft")
    settings = ("model.gradient_checkpointing=true", "data.rows=1")
    adapted = size_of(read(*settings, "model.lora.rank=16"))
    recipe = read(*settings)
    assert adapted < size_of(recipe)
    assert ways.Way(("model.lora.rank=16",), 1, adapted) in make_plan(recipe, 1, gpu_with(adapted)).ways
    assert not any("lora" in str(way) for way in make_plan(recipe, 1, gpu_with(adapted - 1)).ways)
    experts = read(*settings, "model.decoder_kind={name: experts}")
    assert not any("lora" in str(way) for way in make_plan(experts, 1, gpu_with(adapted)).ways)


def test_adapters_are_counted(read):
    pytest.importorskip("peft")
    own = sum(make_plan(read(), 1, gpu_with(1e12), compare=False).parameters["language_model"].__dict__.values())
    plan = make_plan(read("model.lora.rank=2"), 1, gpu_with(1e12), compare=False)
    assert plan.parameters["language_model"].frozen == own
    assert plan.parameters["language_model"].trainable == 2 * 2 * (4 * (32 + 32) + 3 * (32 + 64))
    trainable = sum(part.trainable for part in plan.parameters.values())
    assert plan.memory.gradients == 4 * trainable and 8 * trainable <= plan.memory.optimizer < 8 * trainable + 1000


def test_packed_weights_take_an_eighth_and_are_saved_whole(read):
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    plain, packed = (
        make_plan(read(f"model.lora={{rank: 2{more}}}", "trainer.strategy=auto"), 1, gpu_with(1e12), compare=False)
        for more in ("", ", quantization: nf4")
    )
    adapted = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert plain.memory.weights - packed.memory.weights == adapted * 4 - adapted // 2 - adapted // 64 * 4
    assert packed.parameters == plain.parameters and packed.needs.checkpoints == plain.needs.checkpoints
    with pytest.raises(ConfigError, match="fsdp2 cannot share out the packed weights"):
        make_plan(read("model.lora={quantization: nf4}"), 1, gpu_with(1e12))
