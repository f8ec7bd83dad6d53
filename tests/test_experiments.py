"""Every recipe is read, built on the meta device and counted; numbers are those of the papers, or worked out by hand here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from lit_eve.cli import main
from lit_eve.planning.typical_data import typical_epoch
from lit_eve.processing import ImageGeometry
from lit_eve.training.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
STAGES = ("1_prealign", "2_pretrain", "3_finetune")
LARGE = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.glob("eve_*/*.yaml"))
WORLDS = ("nano", "nano_hard")
MODELS = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.glob("models/**/*.yaml"))
ALL = [
    *LARGE,
    *MODELS,
    *(f"{world}/{stage}.yaml" for world in WORLDS for stage in STAGES),
    "variants/linear_patches.yaml",
    "variants/experts.yaml",
    "variants/bidirectional_images.yaml",
]
ABLATIONS = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.glob("ablations/*.yaml"))
EVALUATIONS = ["evaluation/ten.yaml"]  # run by tests/evaluation/test_run.py
SMALL_SETTINGS = [f"{world}/{name}.yaml" for world in WORLDS for name in ("0_language_model", "0_teacher", "world")]

# Hub name, published number of parameters, width and layers of the decoder: from the models' cards and papers.
DECODERS = {
    "eve_7b": ("lmsys/vicuna-7b-v1.5", 6_738_415_616, 4096, 32),
    "eve_7b_hd": ("lmsys/vicuna-7b-v1.5", 6_738_415_616, 4096, 32),
    "eve_smollm2_360m": ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, 960, 32),
    "eve_qwen2.5_1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, 1536, 28),
    "eve_qwen3_4b": ("Qwen/Qwen3-4B", 4_022_468_096, 2560, 36),
    "eve_llama3.1_8b": ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 4096, 32),
}
# arXiv 2406.11832, section 4.1, and the official scripts: learning rate, warm-up, length, image size, samples per step.
PAPER = {
    ("eve_7b", "1_prealign"): (4e-4, 0.03, 2048, 672, 512),
    ("eve_7b", "2_pretrain"): (4e-5, 0.01, 2048, 672, 512),
    ("eve_7b", "3_finetune"): (2e-5, 0.01, 2048, 672, 128),
    ("eve_7b_hd", "3_finetune"): (2e-5, 0.01, 4096, 1344, 128),
}


@cache
def recipe_of(name: str) -> Recipe:
    return read_recipe(str(EXPERIMENTS / name))


def folder_and_stage(name: str) -> tuple[str, str]:
    path = Path(name)
    return path.parent.name, path.stem


# ---- files


def test_every_file_is_known():
    found = {str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*") if path.is_file()}
    results = {name for name in found if name.startswith(("RESULTS.md", "results/"))}  # tests/sweeps/test_published.py
    assert found - results == {*ALL, *ABLATIONS, *EVALUATIONS, *SMALL_SETTINGS}
    assert {folder_and_stage(name)[0] for name in LARGE} == set(DECODERS)


@pytest.mark.parametrize("name", [*ALL, *ABLATIONS, *EVALUATIONS, *SMALL_SETTINGS])
def test_first_lines_ask_a_question(name):
    lines = (EXPERIMENTS / name).read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert "?" in " ".join(head[:2])


@pytest.mark.parametrize("name", [name for name in ALL if name not in MODELS])
def test_recipe_is_read(name):
    recipe = recipe_of(name)
    expected = {"1_prealign": "prealign", "2_pretrain": "pretrain", "3_finetune": "finetune", "experts": "pretrain"}
    stage = expected.get(folder_and_stage(name)[1], "prealign")
    assert recipe.module.stage.name == stage
    assert recipe.trainer.default_root_dir == f"runs/{name.removesuffix('.yaml').removeprefix('variants/')}"
    assert type(recipe.data).__name__ == f"{stage.capitalize()}DataModule"
    assert recipe.template == (None if stage == "finetune" else "plain")


@pytest.mark.parametrize("name", [name for name in LARGE if not name.startswith("eve_7b")])
def test_other_sizes_are_overrides_only(name):
    folder, stage = folder_and_stage(name)
    content = yaml.safe_load((EXPERIMENTS / name).read_text())
    model = {"decoder", "template"} | ({"init_from"} if stage != "1_prealign" else set())
    assert content.keys() == {"base", "model", "trainer"} and content["base"] == f"../eve_7b/{stage}.yaml"
    assert content["model"].keys() == model and content["trainer"].keys() == {"default_root_dir"}


@pytest.mark.parametrize("name", LARGE)
def test_stages_follow_each_other(name):
    recipe, (folder, stage) = recipe_of(name), folder_and_stage(name)
    assert recipe.trainer.default_root_dir == f"runs/{folder}/{stage}"
    start = recipe.module.blueprint.init_from
    if stage == "1_prealign":
        assert start is None
        return
    earlier = recipe_of(f"{start.removeprefix('runs/')}.yaml")
    assert earlier.module.stage.name == {"2_pretrain": "prealign", "3_finetune": "pretrain"}[stage]
    for key in ("decoder", "patch_embedding", "projector", "teacher", "aligner", "template"):
        assert getattr(recipe.module.blueprint, key) == getattr(earlier.module.blueprint, key), key


def test_templates():
    templates = {name: recipe_of(name).module.blueprint.template for name in LARGE}
    for name, template in templates.items():
        thinking = {"name": "chat", "arguments": {"enable_thinking": False}}
        assert template == {"eve_7b": "vicuna_v1", "eve_7b_hd": "vicuna_v1", "eve_qwen3_4b": thinking}.get(
            folder_and_stage(name)[0], "chat"
        )


# ---- the paper's settings


@pytest.mark.parametrize("name", LARGE)
def test_settings_are_those_of_the_paper(name):
    recipe, (folder, stage) = recipe_of(name), folder_and_stage(name)
    lr, warmup, length, size, _ = PAPER.get((folder, stage)) or PAPER["eve_7b", stage]
    module = recipe.module
    assert (module.stage.lr, module.stage.warmup, recipe.data.max_tokens) == (lr, warmup, length)
    assert module.blueprint.geometry["image_size"] == size
    assert (module.optimizer.get("weight_decay", 0.0), module.lr_floor) == (0.0, 0.0)
    assert module.optimizer.keys() <= {"name", "weight_decay"} and module.optimizer["name"] == "adamw"
    assert module.blueprint.alignment_weight == 1.0 and module.blueprint.teacher_layer == -2
    trainer = recipe.trainer
    assert (trainer.max_epochs, trainer.gradient_clip_val, trainer.precision) == (1, 1.0, "bf16-mixed")
    assert trainer.strategy == "fsdp2" and module.gradient_checkpointing
    (source,) = recipe.data.sources["train"]
    assert source.weight == pytest.approx(16 / 33 if stage == "1_prealign" else 1, rel=1e-3)


@pytest.mark.parametrize("name", LARGE)
def test_steps_are_about_as_large_as_in_the_paper(name):
    recipe, (folder, stage) = recipe_of(name), folder_and_stage(name)
    samples = (PAPER.get((folder, stage)) or PAPER["eve_7b", stage])[-1]
    epoch = typical_epoch(recipe, ImageGeometry.from_dict(recipe.module.blueprint.geometry))
    assert recipe.data.global_batch * epoch.samples_per_row == pytest.approx(samples, rel=0.05)
    for gpus in (8, 16):
        assert recipe.data.global_batch % (gpus * recipe.data.rows) == 0


# ---- the model


@cache
def skeleton_of(folder: str):
    """The model of its first stage; the later ones have the same parts (test_stages_follow_each_other)."""
    first = next(name for name in LARGE if folder_and_stage(name)[0] == folder)
    return recipe_of(first).module.blueprint.skeleton(planned=True)


def by_hand(width: int, layers: int) -> dict[str, int]:
    """Parameters of the parts around a decoder of this width (D), for E = K = 1024 and patches of 14 pixels."""
    e = k = 1024
    attention = 2 * 2 * e + e * e + 2 * e * e + e * e + e  # two norms; query; key and value; out with bias
    taps = layers // 4 + 1
    teacher_layer = 4 * (k * k + k) + 2 * 2 * k + (k * 4 * k + 4 * k) + (4 * k * k + k)
    return {
        "patch_embedding": 3 * 14 * 14 * e + 2 * e + 2 * attention,  # class and split token; local and global attention
        "projector": (e * width + width) + (width * width + width),
        "aligner": taps * (2 * width + width * k) + (width * k + k) + (k * k + k),
        # class token, patches, places; the norm in front; 23 of 24 layers, as layer -2 is aligned to
        "teacher": k + 3 * 14 * 14 * k + (24 * 24 + 1) * k + 2 * k + 23 * teacher_layer,
    }


def test_arithmetic_by_hand():
    expected = {"patch_embedding": 9_003_008, "projector": 20_979_712, "aligner": 43_067_392, "teacher": 290_909_184}
    assert by_hand(4096, 32) == expected


@pytest.mark.parametrize("name", LARGE)
def test_parameters(name):
    recipe, (folder, stage) = recipe_of(name), folder_and_stage(name)
    model = skeleton_of(folder)
    hub, decoder, width, layers = DECODERS[folder]
    assert recipe.module.blueprint.decoder == hub
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    expected = {"language_model": decoder, **by_hand(width, layers)}
    assert counts == expected
    assert model.aligner.taps == tuple(range(layers, -1, -4))

    student = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("teacher.")}
    rates = recipe.module.stage.rates(student)
    trainable = sum(size for name, size in student.items() if rates[name] is not None)
    around = expected["patch_embedding"] + expected["projector"] + expected["aligner"]
    assert trainable == (around if stage == "1_prealign" else around + decoder)


# ---- docs/scale.md and docs/recipes.md


def lines_of(text: str) -> dict[str, list[str]]:
    """Recipe -> the columns of its line in an overview."""
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row and re.match(r"eve_.+/\d_", row[0])}


def plan_lines(names: list[str], capsys: pytest.CaptureFixture) -> dict[str, list[str]]:
    assert main(["plan", *(str(EXPERIMENTS / name) for name in names)]) == 0
    shown = capsys.readouterr().out
    assert "16 x A100 40 GB" in shown
    return lines_of(shown)


DOCUMENTED = lines_of((ROOT / "docs/scale.md").read_text())


def test_documented_plans_are_of_all_recipes():
    assert {f"{name}.yaml" for name in DOCUMENTED} == set(LARGE)


def test_documented_plans_of_the_smallest(capsys):
    names = [name for name in LARGE if "smollm2" in name]
    assert plan_lines(names, capsys) == {name: DOCUMENTED[name] for name in DOCUMENTED if "smollm2" in name}


@pytest.mark.slow
def test_documented_plans(capsys):
    assert plan_lines(LARGE, capsys) == DOCUMENTED


def test_documented_comparison_with_the_paper():
    days = sum(float(DOCUMENTED[f"eve_7b/{stage}"][-2]) for stage in STAGES)
    text = " ".join((ROOT / "docs/recipes.md").read_text().split())
    stated = re.search(r"At 40 % of the peak the three stages of EVE-7B take ([\d.]+) days; .* correspond to (\d+) %", text)
    assert float(stated[1]) == pytest.approx(days, abs=0.05) and int(stated[2]) == pytest.approx(40 * days / 9, abs=0.5)
