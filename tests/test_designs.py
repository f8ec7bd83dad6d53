"""The designs of experiments/models: their stages follow each other, and at published size they are what was published."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

import lit_eve
from lit_eve.cli import main
from lit_eve.losses import ALIGNERS
from lit_eve.models import DECODER_KINDS, IMAGE_ATTENTIONS, PATCH_EMBEDDINGS, POSITIONS, PROJECTORS, SUPERVISIONS
from lit_eve.nano.pipeline import designs, model_config, read_stage
from lit_eve.processing import GEOMETRIES, AroundImages
from lit_eve.training.cli import main as train
from lit_eve.training.recipe import Recipe, read_recipe
from tests.training import world as micro

MODELS = Path(__file__).parents[1] / "experiments" / "models"
FOLDERS = sorted({path.parent.relative_to(MODELS) for path in MODELS.rglob("*.yaml") if path.parent.name != "arms"})


@cache
def stages_of(folder: Path) -> list[Recipe]:
    return [read_recipe(str(path)) for path in sorted((MODELS / folder).glob("*.yaml"))]


def test_every_design_has_both_sizes():
    large, small = ({folder.parts[0] for folder in FOLDERS if (folder.name == "nano") is nano} for nano in (False, True))
    assert large == small - {"eve_v1_hd"} and (MODELS.parent / "eve_7b_hd").is_dir()
    assert designs() == ["eve_v1", *sorted(small)] and model_config("eve_v1").samefile(MODELS.parent / "nano")


def test_eve_v1_hd_is_eve_v1_up_to_its_last_stage():
    hd, first = MODELS / "eve_v1_hd/nano", MODELS.parent / "nano"
    for name in ("1_prealign", "2_pretrain"):
        assert read_stage(hd / f"{name}.yaml", Path("here")) == read_stage(first / f"{name}.yaml", Path("here"))
    (*_, last), before = stages_of(Path("eve_v1_hd/nano")), read_recipe(str(first / "1_prealign.yaml")).module.blueprint
    assert last.module.blueprint.geometry == before.geometry | {"image_size": 128} and before.geometry["image_size"] == 64


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_stages_follow_each_other(folder):
    run = f"runs/nano_{folder.parent}" if folder.name == "nano" else f"runs/{folder}"
    names = sorted(path.stem for path in (MODELS / folder).glob("*.yaml"))
    before = None
    for number, (name, recipe) in enumerate(zip(names, stages_of(folder), strict=True), 1):
        assert name.startswith(f"{number}_")
        assert recipe.trainer.default_root_dir == f"{run}/{name}"
        assert recipe.module.blueprint.init_from == before
        assert before is not None or recipe.module.blueprint.decoder is not None
        before = f"{run}/{name}"


def test_the_page_names_all_parts():
    page = (MODELS.parents[1] / "docs/models.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+)\|", page, flags=re.MULTILINE))
    found = {key: set(re.findall(r"`(\w+)`", names)) for key, names in rows.items()}
    parts = {
        "geometry": GEOMETRIES,
        "patch_embedding": PATCH_EMBEDDINGS,
        "projector": PROJECTORS,
        "decoder_kind": DECODER_KINDS,
        "image_attention": IMAGE_ATTENTIONS,
        "positions": POSITIONS,
        "supervision": SUPERVISIONS,
        "aligner": ALIGNERS,
    }
    shipped = lambda registry: {name for name in registry if registry.module_of(name) is None}  # noqa: E731
    assert found == {key: shipped(registry) for key, registry in parts.items()}


COLUMNS = ("geometry", "patch_embedding", "decoder_kind", "image_attention", "positions", "supervision")
TITLES = {"eve_7b": "EVE v1", "eve_7b_hd": "EVE v1 HD", "eve_v2": "EVE v2", "fuyu": "Fuyu", "gemma4_unified": "Gemma 4 unified"}
TITLES |= {"llava_1.5": "LLaVA-1.5", "mono_internvl": "Mono-InternVL", "neo": "NEO", "solo": "SOLO", "vora": "VoRA"}


def parts_of(folder: Path) -> dict[str, set[str]]:
    """The entries, other than defaults, that the stages of a design name for each kind."""
    found = {key: set() for key in COLUMNS}
    for recipe in stages_of(folder):
        blueprint = recipe.module.blueprint
        for key in COLUMNS[:-1]:
            found[key] |= {(getattr(blueprint, key) or {"name": "dense"})["name"]} - {"dense", "causal", "sequential"}
        alone = [{"name": "patch_alignment"}] if blueprint.teacher else []
        found["supervision"] |= {entry["name"] for entry in (blueprint.supervision or alone)}
    return found


def test_the_page_says_what_each_design_is_made_of():
    page = (MODELS.parents[1] / "docs/models.md").read_text()
    header, rows = re.search(r"^(\| design \|.*)\n\|[-|]+\n((?:\|.*\n)+)", page, flags=re.MULTILINE).groups()
    assert re.findall(r"`(\w+)`", header) == list(COLUMNS)
    written = {}
    for row in rows.splitlines():
        title, _, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        title = re.match(r"\[?([^],]+)", title)[1]
        written[title] = {key: set(re.findall(r"`(\w+)`", cell)) for key, cell in zip(COLUMNS, cells, strict=True)}
    folders = [MODELS.parent / name for name in ("eve_7b", "eve_7b_hd")]
    folders += [folder for folder in FOLDERS if folder.name != "nano"]
    assert written == {TITLES[folder.name]: parts_of(folder) for folder in folders}


def test_eve_v2_has_the_published_sizes():
    """As counted from the official code around Qwen2.5-7B: tests/data/eve_v2/tiny/moe_keys.json."""
    first, second, *_ = stages_of(Path("eve_v2"))
    dense, experts = (recipe.module.blueprint.skeleton(planned=True) for recipe in (first, second))
    sizes = {name: parameter.numel() for name, parameter in experts.named_parameters()}
    assert sum(parameter.numel() for parameter in dense.parameters()) == 7_631_094_784
    assert sum(sizes.values()) == 14_156_712_960
    assert sum(size for name, size in sizes.items() if ".image." in name) == 6_525_618_176


def test_eve_v2_has_the_published_rates_and_lengths():
    """The tables of the official README, EVEv2: stages 0, 1.0, 1.1, 2 and 3."""
    found = [
        (one.module.stage.lr, one.module.stage.warmup, one.data.max_tokens, one.module.blueprint.geometry["max_size"])
        for one in stages_of(Path("eve_v2"))
    ]
    assert found == [
        (2e-4, 0.03, 2048, 800),
        (1e-4, 0.03, 2048, 800),
        (5e-5, 0.03, 4096, 1600),
        (2e-5, 0.03, 4096, 1600),
        (1e-5, 0.03, 5000, 1600),
    ]


def test_eve_v2_trains_what_the_official_stages_train():
    def trained(number: int) -> set[str]:
        recipe = stages_of(Path("eve_v2"))[number - 1]
        model = recipe.module.blueprint.skeleton(planned=True)
        return {
            name for name, rate in recipe.module.stage.rates([name for name, _ in model.named_parameters()]).items() if rate
        }

    assert all(name.startswith("patch_embedding.") for name in trained(1)) and len(trained(1)) == 6
    for number in (2, 3):
        assert all(name.startswith("patch_embedding.") or ".image." in name for name in trained(number))
        assert len(trained(number)) == 6 + 12 * 28
    for number in (4, 5):
        assert len(trained(number)) == 681


@pytest.mark.parametrize(
    ("arm", "size", "trained"),
    [("dense", 7_631_094_784, 345), ("mlp", 13_334_299_648, 90)],  # 3 * 3584 * 18944 weights in the MLP of each of 28 layers
)
def test_arms_of_eve_v2_have_the_experts_that_they_name(arm, size, trained):
    recipe = read_recipe(str(MODELS / "eve_v2/arms" / f"{arm}.yaml"))
    model = recipe.module.blueprint.skeleton(planned=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    rates = recipe.module.stage.rates([name for name, _ in model.named_parameters()])
    assert len([name for name, rate in rates.items() if rate]) == trained
    small = read_recipe(str(MODELS / "eve_v2/nano/arms" / f"{arm}.yaml"))
    assert small.module.blueprint.decoder_kind == recipe.module.blueprint.decoder_kind
    for one, folder in ((recipe, "runs/eve_v2"), (small, "runs/nano_eve_v2")):
        assert one.module.blueprint.init_from == f"{folder}/1_prealign"
        assert one.trainer.default_root_dir == f"{folder}_{arm}/2_vision"
    for one in (recipe, small):  # at the rate of the stage in whose place they stand
        assert one.module.stage.lr == {True: 3e-3, False: 1e-4}[one is small] and one.module.stage.warmup in (0.03, 0.05)


def test_fuyu_has_the_published_size():
    """adept/fuyu-8b has 9,408,238,592 parameters; here the word that ends a row of patches is a part of its own."""
    for recipe, around in zip(stages_of(Path("fuyu")), (True, False, False), strict=True):
        model = recipe.module.blueprint.skeleton(planned=True)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        assert sum(sizes.values()) == 9_408_238_592 + 4096
        trained = {name for name, rate in recipe.module.stage.rates(list(sizes)).items() if rate}
        assert trained == ({name for name in sizes if name.startswith("patch_embedding.")} if around else sizes.keys())
        assert recipe.module.blueprint.image_mean == recipe.module.blueprint.image_std == [0.5, 0.5, 0.5]
        assert model.geometry.num_tokens(1920, 1080) == 36 * 65


def test_vora_has_the_published_sizes_and_rates():
    """Rank 1024 in all linear layers of 24 of 28: r times the rows and columns of each matrix (the official LoRALayer)."""
    first, second = stages_of(Path("vora"))
    adapted, merged = (recipe.module.blueprint.skeleton(planned=True) for recipe in (first, second))
    sizes = {name: parameter.numel() for name, parameter in adapted.named_parameters()}
    assert sum(size for name, size in sizes.items() if ".lora_" in name) == 24 * 1024 * 90_112 == 2_214_592_512
    assert sum(parameter.numel() for parameter in merged.language_model.parameters()) == 7_615_616_512
    assert len([name for name in sizes if ".lora_" in name]) == 24 * 7 * 2 and "bias" not in first.module.blueprint.decoder_kind
    found = [
        (one.module.stage.lr, one.module.stage.warmup, one.module.lr_floor, one.data.max_tokens) for one in (first, second)
    ]
    assert found == [(2e-4, 100, 1.0, 2048), (2e-5, 20, 0.0, 2048)]


def test_vora_trains_adapters_patch_embedding_and_heads_and_then_everything():
    first, second = stages_of(Path("vora"))
    for recipe, expected in (
        (first, "patch_embedding|distillation|language_model.*lora_"),
        (second, "patch_embedding|language_model"),
    ):
        model = recipe.module.blueprint.skeleton(planned=True)
        recipe.module.stage.apply(model)
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trains == {name for name, _ in model.named_parameters() if re.match(expected, name)}


def test_llava_has_the_published_size():
    """As transformers' llava-hf/llava-1.5-7b-hf, whose vocabulary has 64 rows more, without CLIP's last layer and last norm,
    which nothing uses."""
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}))
    unused = [
        parameter.numel()
        for name, parameter in theirs.model.vision_tower.named_parameters()
        if name.startswith(("encoder.layers.23.", "post_layernorm."))
    ]
    rows = 2 * 64 * 4096
    first, second, third = stages_of(Path("llava_1.5"))
    models = [recipe.module.blueprint.skeleton(planned=True) for recipe in (first, third)]
    for model in models:
        assert sum(p.numel() for p in model.parameters()) == 7_050_304_512
        assert model.num_parameters() == theirs.num_parameters() - sum(unused) - rows
    names = [name for name, _ in models[0].named_parameters()]
    trained = [{name.split(".")[0] for name, rate in one.module.stage.rates(names).items() if rate} for one in (first, second)]
    assert trained == [{"projector"}, {"projector", "language_model"}]


def test_neo_has_the_published_sizes_and_rates():
    """Layers, channels and stages of the official scripts (tests/data/neo/stages.json), around Qwen3-1.7B and Qwen3-8B."""
    stages = stages_of(Path("neo"))
    first = stages[0].module.blueprint
    model = first.skeleton(planned=True)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    layer = 2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144 + 2 * 2048 + 2 * 128  # of Qwen3-1.7B
    channels = 2048 * 2048 + 2048 * 1024 + 4 * 64
    patches = 768 * 1024 + 1024 + 4 * 1024 * 2048 + 2048
    assert sum(sizes.values()) == 40 * (layer + channels) + (151_936 + 1) * 2048 + patches == 2_585_453_568
    assert sum(size for name, size in sizes.items() if re.search(r"_hw\.|_norm_[hw]\.", name)) == 40 * channels
    larger = replace(first, decoder="Qwen/Qwen3-8B", decoder_kind={"name": "pre_buffer", "layers": 6}).skeleton(planned=True)
    assert sum(parameter.numel() for parameter in larger.parameters()) == 10_246_797_312
    found = [
        (one.module.stage.lr, one.module.stage.warmup, one.module.lr_floor, one.trainer.max_steps, one.data.max_tokens)
        for one in stages
    ]
    assert found == [
        (8e-4, 1000, 0.1, 200_000, 16384),
        (5e-5, 0.03, 0.2, 50_000, 32768),
        (6e-5, 0.03, 0.1, 4500, 34816),
    ]
    assert [one.module.blueprint.geometry["max_pixels"] for one in stages] == [2**22, 2**24, 2**24]


def test_neo_trains_what_is_new_and_then_everything():
    for number, recipe in enumerate(stages_of(Path("neo"))):
        model = recipe.module.blueprint.skeleton(planned=True)
        recipe.module.stage.apply(model)
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        expected = r"patch_embedding|.*\.layers\.(\d|1[01])\.|.*_hw\.|.*_norm_[hw]\." if number == 0 else ""
        assert trains == {name for name, _ in model.named_parameters() if re.match(expected, name)}


def sizes_of(folder: str) -> dict[str, int]:
    """Parameters of the first stage's model."""
    model = stages_of(Path(folder))[0].module.blueprint.skeleton(planned=True)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def trained_in(folder: str, number: int) -> set[str]:
    recipe, names = stages_of(Path(folder))[number - 1], list(sizes_of(folder))
    return {name for name, rate in recipe.module.stage.rates(names).items() if rate}


def test_mono_internvl_has_the_published_sizes():
    """3.11B parameters (the model card of Mono-InternVL-2B), of them 1.2B of visual experts (paper, section 4.2)."""
    sizes = sizes_of("mono_internvl")
    attention, mlp, width = 2 * 2048 * 2048 + 2 * 2048 * 1024, 3 * 2048 * 8192, 2048
    patches = 588 * 1024 + 1024 + 32 * 32 * 1024
    patches += 2 * 4096 + (4096 * width + width) + (width * width + width)
    expected = 2 * 92546 * width + 24 * (attention + 2 * mlp + 2 * width) + width + patches
    assert sum(sizes.values()) == expected == 3_111_324_672
    assert sum(size for name, size in sizes.items() if ".image." in name) == 24 * mlp == 1_207_959_552


def test_mono_internvl_trains_what_the_official_stages_train():
    experts = {name for name in sizes_of("mono_internvl") if ".image." in name}
    attention = {name for name in sizes_of("mono_internvl") if ".self_attn." in name}
    patches = {name for name in sizes_of("mono_internvl") if name.startswith("patch_embedding.")}
    assert len(experts) == 3 * 24 and len(attention) == 4 * 24 and len(patches) == 9
    assert trained_in("mono_internvl", 1) == trained_in("mono_internvl", 2) == experts | patches
    assert trained_in("mono_internvl", 3) == experts | patches | attention
    assert trained_in("mono_internvl", 4) == set(sizes_of("mono_internvl"))
    *_, last = stages_of(Path("mono_internvl"))
    assert (last.module.stage.lr, last.module.stage.warmup) == (4e-5, 0.03)
    assert (last.data.max_tokens, last.data.global_batch) == (2048, 128)
    tiles = [recipe.module.blueprint.geometry["max_tiles"] for recipe in stages_of(Path("mono_internvl"))]
    assert [256 * (most + 1) for most in tiles] == [1280, 1792, 3328, 1792]  # tokens with the thumbnail: paper, section 3.3


def test_solo_has_the_published_sizes_and_rates():
    """Mistral-7B and one matrix for patches of 32 x 32 pixels; rates of the official scripts."""
    assert sum(sizes_of("solo").values()) == 7_241_732_096 + 3 * 32 * 32 * 4096 + 2 * 4096
    modules = [one.module for one in stages_of(Path("solo"))]
    found = [(one.stage.lr, one.stage.warmup, one.lr_floor, one.optimizer["weight_decay"]) for one in modules]
    assert found == [(5e-5, 200, 0.1, 0.1)] * 3 + [(1e-5, 50, 0.0, 0.05)]
    assert [one.data.max_tokens for one in stages_of(Path("solo"))] == [32768] * 3 + [4096]
    assert all(trained_in("solo", number) == set(sizes_of("solo")) for number in range(1, 5))


def test_gemma_4_unified_is_a_small_part_of_its_decoder():
    pixels, width = 3 * 48 * 48, 2560
    patches = 2 * pixels + (pixels * width + width) + 2 * width + 2 * 1120 * width + 2 * width + width * width
    assert sum(sizes_of("gemma4_unified").values()) == 4_022_468_096 + patches


def test_the_parts_of_a_model_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    train(["fit", "--config", str(MODELS / "eve_v2/2_vision.yaml"), "--print_model"])
    printed = capsys.readouterr().out
    row = lambda part: re.sub(r" +", " ", next(line for line in printed.splitlines() if f"│ {part} " in line))  # noqa: E731
    assert (
        row("decoder")
        == "│ decoder │ Qwen/Qwen2.5-7B-Instruct │ qwen2: 28 layers of width 3584, 152064 words │ 7,615,616,512 │"
    )
    assert row("decoder_kind") == "│ decoder_kind │ experts │ parts: [norms, attention, mlp] │ 6,525,618,176 │"
    assert row("patch_embedding") == "│ patch_embedding │ eve_v2 │ patch_width: 1024 │ 15,478,272 │"
    assert row("all") == "│ all │ │ 14,156,712,960 │ │" and row("trainable") == "│ trainable │ │ 6,541,096,448 │ │"


def test_new_layers_and_channels_are_printed_with_what_adds_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    train(["fit", "--config", str(MODELS / "neo/1_pretrain.yaml"), "--print_model"])
    printed = re.sub(r" +", " ", capsys.readouterr().out)
    layer, channels = 50_336_000, 6_291_712
    assert f"40 layers of width 2048, 151936 words │ {28 * layer + 151_937 * 2048:,} │" in printed
    assert f"│ decoder_kind │ pre_buffer │ layers: 12 │ {12 * layer:,} │" in printed
    assert f"│ positions │ neo │ theta_hw: 10000.0 │ {40 * channels:,} │" in printed


def test_supervisions_are_printed_with_what_they_train(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    supervision = "--model.supervision=[{name: next_patch, weight: 0.5}]"
    train(["fit", "--config", str(MODELS / "eve_v2/2_vision.yaml"), supervision, "--print_model"])
    printed = re.sub(r" +", " ", capsys.readouterr().out)
    size = 3584 * 3072 + 3072  # a token is 32 x 32 pixels
    assert f"│ next_patch │ supervision │ weight: 0.5 │ {size:,} │" in printed
    assert f"│ next_patch │ TRAINABLE │ {size:,} │" in printed and "│ teacher │" not in printed


def test_adapters_are_printed_with_what_they_train(capsys, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setenv("COLUMNS", "160")
    train(["fit", "--config", str(MODELS / "eve_v2/1_prealign.yaml"), "--model.lora.rank=16", "--print_model"])
    printed = re.sub(r" +", " ", capsys.readouterr().out)
    size = 28 * 16 * 90_112  # rows and columns of each matrix of a layer
    assert f"target_modules: null, use_dora: false │ {size:,} │" in printed
    assert "│ decoder │ Qwen/Qwen2.5-7B-Instruct │ qwen2: 28 layers of width 3584, 152064 words │ 7,615,616,512 │" in printed
    assert f"│ language_model │ TRAINABLE │ {size:,} │" in printed and "│ language_model │ FROZEN │ 7,615,616,512 │" in printed


def test_printing_a_model_needs_a_recipe(capsys):
    with pytest.raises(SystemExit, match="--print_model stands behind `fit` and its settings"):
        train(["test", "--print_model"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "eve_v3"], "there is no 'eve_v3'; the designs are eve_v1, .*eve_v2"),
        (["--model", "eve_v2", "--config", "experiments/nano"], "give either --model or --config"),
    ],
)
def test_wrong_designs(arguments, words, capsys):
    assert main(["nano", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.fixture
def micro_world(tmp_path, monkeypatch) -> None:
    """A random decoder, teacher and shards, in the working directory."""
    monkeypatch.chdir(tmp_path)
    micro.make_decoder(Path("decoder"))
    micro.make_teacher(Path("teacher"), patch_size=16)  # on the grid of 4 x 4 tokens
    micro.make_shards(Path("shards"), 30)


def fit(path: Path, before: Path | None) -> Path:
    """Run a stage of a miniature for two steps; ``before`` is the folder of the one before it."""
    folder, blueprint = Path(path.stem), read_recipe(str(path)).module.blueprint
    settings = {
        "data.train": "shards",
        "data.validation": "null",
        "data.max_tokens": 256,
        "data.num_workers": 0,
        "trainer.default_root_dir": folder,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
    }
    settings |= {"model.decoder": "decoder", "model.template": "vicuna_v1"} if before is None else {"model.init_from": before}
    if blueprint.teacher is not None:
        settings["model.teacher"] = "teacher"
    if "tower" in (blueprint.patch_embedding or {}):
        settings["model.patch_embedding.tower"] = "teacher"
    if (blueprint.projector or {}).get("name") == "identity" and "width" in blueprint.patch_embedding:
        settings["model.patch_embedding.width"] = 32  # as wide as the decoder
    train(["fit", "--config", str(path), *(f"--{key}={value}" for key, value in settings.items())])
    losses = micro.scalars(folder, "train/language_loss")
    assert list(losses) == [1, 2] and all(0 < loss < 10 for loss in losses.values())
    return folder


TRAINED = {Path("eve_v2/nano"), Path("llava_1.5/nano"), Path("vora/nano")}  # by default: experts, a tower, merged adapters


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(folder, marks=() if folder in TRAINED else pytest.mark.slow, id=str(folder))
        for folder in FOLDERS
        if folder.name == "nano"
    ],
)
def test_a_design_trains_through_its_stages(folder, micro_world):
    """Each stage for two steps, around a random decoder; the last model answers."""
    before = None
    for path in sorted((MODELS / folder).glob("*.yaml")):
        before = fit(path, before)
    model, processor = lit_eve.load(before)
    wanted = [recipe.module.blueprint.decoder_kind for recipe in stages_of(folder)]  # later stages go on with what they find
    assert model.config.decoder_kind["name"] == ([kind["name"] for kind in wanted if kind] or ["dense"])[-1]
    around = stages_of(folder)[0].module.blueprint.around_images
    assert processor.around_images == AroundImages.of(around)
    question = [{"type": "image", "image": Image.new("RGB", (90, 40), "red")}, {"type": "text", "text": "what is it?"}]
    inputs = processor(conversation=[{"role": "user", "content": question}])
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.slow
def test_arms_of_eve_v2_train_from_its_first_stage(micro_world):
    first = fit(MODELS / "eve_v2/nano/1_prealign.yaml", None)
    for arm in sorted((MODELS / "eve_v2/nano/arms").glob("*.yaml")):
        kind = read_recipe(str(arm)).module.blueprint.decoder_kind
        model, _ = lit_eve.load(fit(arm, first))
        assert model.config.decoder_kind == kind
