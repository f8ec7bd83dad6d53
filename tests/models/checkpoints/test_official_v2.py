"""Official EVE v2 checkpoints: to ours and back bit by bit, models of our own as official ones, clear words about the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.cli import main
from lit_eve.errors import CheckpointError, LitEveError
from lit_eve.models.checkpoints.conversion import convert
from lit_eve.models.checkpoints.official import titles
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.processing import EveProcessor
from tests.models import reference, tiny
from tests.models import reference_v2 as official
from tests.models.checkpoints.test_convert import all_weights, assert_identical, edit, rewrite

SPEC = {
    "decoder_kind": {"name": "experts", "parts": ["attention", "norms", "mlp"]},
    "patch_embedding": {"name": "eve_v2", "patch_width": 24},
    "projector": {"name": "identity"},
    "geometry": {"name": "eve_v2", "patch_size": 8, "pool_size": 2, "max_size": 64},
}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def ours_of_nothing(folder: Path, **kwargs) -> Path:
    """A model that was never official, with a tokenizer."""
    model = tiny.model(kwargs.pop("decoder", "qwen2_tied"), **SPEC | kwargs)
    model.config.image_mean = [0.5, 0.25, 0.125]
    model.save_pretrained(folder)
    shutil.copytree(reference.TOKENIZER, folder, dirs_exist_ok=True)
    return folder


def with_an_image(processor: EveProcessor) -> dict:
    """A few words around an image."""
    image = dict(processor(images=[Image.effect_noise((70, 40), 80).convert("RGB")]))
    slots = [processor.image_token_id] * int(processor.geometry.num_tokens_of_grid(image["image_grid_hw"][0]))
    return {"input_ids": torch.tensor([[3, 4, *slots, 5, 6]]), **image}


# ---- there and back


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_identical(official_v2_folder, tmp_path, kind, dtype):
    def change(weights):
        weights = {key: value.to(dtype) for key, value in weights.items()}
        weights["lm_head.weight"][0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
        return weights

    edit(official_v2_folder / "config.json", torch_dtype=str(dtype)[6:], tokenizer_padding_side="right", freeze_x=None)
    rewrite(official_v2_folder, change)
    expected = load_file(official_v2_folder / "model.safetensors")
    reference.split(official_v2_folder, kind, parts=3, index=True)
    ours, back = tmp_path / "ours", tmp_path / "back"
    there = convert(official_v2_folder, ours, max_shard_size="300KB")
    assert (there.layout, there.num_weights, there.dropped) == ("lit_eve", 153, [])
    assert {value.dtype for value in all_weights(ours).values()} == {dtype}
    result = convert(ours, back, max_shard_size="300KB")
    assert_identical(all_weights(back), expected)
    for file in ("config.json", "tokenizer_config.json", "tokenizer.json", "vision_tokenizer/preprocessor_config.json"):
        assert (back / file).read_bytes() == (official_v2_folder / file).read_bytes(), file
    assert [note for note in result.notes if "vision_tokenizer" not in note] == []


def test_every_kernel_has_its_own_place():
    """Patches of a window follow each other row by row, each with its whole width."""
    name = "patch_embedding.window_projection.weight"
    kernel = torch.arange(5 * 3 * 2 * 2).view(5, 3, 2, 2)
    matrix = official.LAYOUT.import_value(name, kernel)
    assert torch.equal(matrix[:, (1 * 2 + 0) * 3 + 2], kernel[:, 2, 1, 0])
    one = tiny.config("qwen2_tied", **SPEC)
    assert torch.equal(official.LAYOUT.export_value(name, matrix, one), kernel)


def test_a_converted_folder_gives_the_official_losses(official_v2_folder, tmp_path):
    convert(official_v2_folder, tmp_path / "ours", max_shard_size="300KB")
    model, processor = lit_eve.load(tmp_path / "ours")
    expected = official.results()["batches"]["b4_mixed"]["loss"]["value"]
    assert model(**official.batch("b4_mixed", processor)).loss.item() == pytest.approx(expected, abs=1e-5)
    assert model.generation_config.eos_token_id == 511 and model.config.image_token_id == 512
    assert processor.template == "vicuna_v1"
    direct = dict(iterate_weights(official_v2_folder))
    assert_close(dict(iterate_weights(tmp_path / "ours")), direct, rtol=0, atol=0)


@pytest.mark.parametrize("parts", [["norms"], ["attention", "mlp"], None])
@pytest.mark.parametrize("decoder", ["qwen2_tied", "qwen2"])
def test_a_model_of_our_own_becomes_official_and_comes_back(tmp_path, monkeypatch, parts, decoder):
    monkeypatch.setitem(tiny.DECODERS, "qwen2", tiny.DECODERS["qwen2_tied"] | {"tie_word_embeddings": False})
    kind = {"name": "experts", "parts": parts} if parts else {"name": "dense"}
    ours = ours_of_nothing(tmp_path / "ours", decoder=decoder, decoder_kind=kind)
    result = convert(ours, tmp_path / "official")
    config = config_of(tmp_path / "official")
    assert config["mm_vision_tower"] == "openai/eve-anyratio-res64-patch8" and config["mm_hidden_size"] == 24
    theirs = {"norms": "layernorm", "attention": "self_attn", "mlp": "mlp"}
    moe_part = "-".join(theirs[part] for part in parts) if parts else None
    assert (config["add_moe"], config["moe_part"]) == (bool(parts), moe_part)
    assert any("openai/eve-anyratio-res64-patch8" in note for note in result.notes)
    again = convert(tmp_path / "official", tmp_path / "again")
    assert again.num_weights == result.num_weights
    assert_identical(all_weights(tmp_path / "again"), all_weights(ours))
    before, after = (lit_eve.EveConfig.from_pretrained(folder) for folder in (ours, tmp_path / "again"))
    for key in ("geometry", "patch_embedding", "decoder_kind", "projector", "image_mean", "image_token_id"):
        assert getattr(after, key) == getattr(before, key), key
    model = lit_eve.EveForConditionalGeneration.from_pretrained(ours)
    same, processor = lit_eve.load(tmp_path / "official")
    inputs = with_an_image(processor)
    assert_close(same(**inputs).logits, model.eval()(**inputs).logits, rtol=0, atol=0)


def test_the_moe_weights_have_official_names_and_shapes(tmp_path):
    convert(ours_of_nothing(tmp_path / "ours"), tmp_path / "official")
    found = all_weights(tmp_path / "official")
    layer = {key.replace(".1.", ".0.") for key in found if key.startswith("model.layers.1.")}
    assert layer == {key for key in official.official_weights() if key.startswith("model.layers.0.")}
    assert found["model.vision_tower.patch_embedding.0.weight"].shape == (24, 3, 8, 8)
    assert found["model.vision_tower.patch_embedding.2.weight"].shape == (32, 24, 2, 2)


def test_names_and_shapes_at_7b(tmp_path):
    full = json.loads((official.ROOT / "tiny" / "moe_keys.json").read_text())["full_size_7b"]
    shutil.copy(official.WEIGHTS / "config.json", tmp_path)
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    tower = {"mm_hidden_size": 1024, "mm_vision_tower": "openai/eve-anyratio-res1600-patch16"}
    edit(tmp_path / "config.json", num_hidden_layers=28, vocab_size=152064, **sizes, **tower)
    config = official.LAYOUT.read_config(tmp_path)
    with torch.device("meta"):
        weights = lit_eve.EveForConditionalGeneration(config).state_dict()
    theirs = official.LAYOUT.write_config(config, "bfloat16")
    found = {
        official.LAYOUT.export_name(name, theirs): official.LAYOUT.export_value(name, value, config)
        for name, value in weights.items()
    }
    assert (len(found), sum(value.numel() for value in found.values())) == (full["n_keys"], full["n_parameters"])
    assert {key: list(found[key].shape) for key in full["keys"]} == full["keys"]
    assert {official.LAYOUT.import_name(key) for key in found} == weights.keys()


def test_what_was_changed_since_reaches_the_official_files(official_v2_folder, tmp_path):
    ours, back = convert(official_v2_folder, tmp_path / "ours") and tmp_path / "ours", tmp_path / "back"
    tower = Path("vision_tokenizer", "preprocessor_config.json")
    before = json.loads((official_v2_folder / tower).read_text())
    edit(ours / "config.json", image_mean=[0.5, 0.5, 0.5], eos_token_id=[509, 511])
    convert(ours, back)
    assert config_of(back) == config_of(official_v2_folder) | {"eos_token_id": [509, 511]}
    assert json.loads((back / tower).read_text()) == before | {"image_mean": [0.5, 0.5, 0.5]}
    edit(ours / "config.json", geometry=config_of(ours)["geometry"] | {"max_size": 320})
    convert(ours, back, overwrite=True)
    assert config_of(back)["mm_vision_tower"] == "openai/eve-anyratio-res320-patch16"
    assert official.LAYOUT.read_config(back).geometry["max_size"] == 320


# ---- image sizes


@pytest.mark.parametrize(
    ("tower", "size"),
    [("openai/eve-anyratio-res800-patch16", 800), ("checkpoints/openai/eve-anyratio-res1600-patch16/", 1600)],
)
def test_the_image_size_is_in_the_name_of_the_tower(official_v2_folder, tower, size):
    edit(official_v2_folder / "config.json", mm_vision_tower=tower)
    model, processor = lit_eve.load(official_v2_folder)
    assert (model.geometry.max_size, model.geometry.patch_size, model.geometry.pool_size) == (size, 16, 2)
    assert processor.geometry == model.geometry
    assert lit_eve.load(official_v2_folder, image_size=320)[1].geometry.max_size == 320


def test_an_image_size_that_cannot_be_told_is_asked_for(official_v2_folder, tmp_path):
    edit(official_v2_folder / "config.json", mm_vision_tower="tower")
    with pytest.raises(CheckpointError, match="'tower'.*image_size=1600, or --image-size 1600"):
        lit_eve.load(official_v2_folder)
    assert main(["convert", str(official_v2_folder), str(tmp_path / "ours"), "--image-size", "160"]) == 0
    convert(tmp_path / "ours", tmp_path / "back")
    assert config_of(tmp_path / "back") == config_of(official_v2_folder)
    sizes = json.loads((tmp_path / "back" / "tower" / "preprocessor_config.json").read_text())
    assert sizes["max_size"] == 160


def test_a_tower_beside_the_checkpoint_is_read_but_nothing_is_written_there(official_v2_folder, tmp_path):
    (official_v2_folder / "vision_tokenizer").rename(tmp_path / "tower")
    edit(official_v2_folder / "config.json", mm_vision_tower="../tower")
    convert(official_v2_folder, tmp_path / "out" / "ours")
    convert(tmp_path / "out" / "ours", tmp_path / "out" / "back")
    assert not list((tmp_path / "out").rglob("tower"))
    assert config_of(tmp_path / "out" / "back") == config_of(official_v2_folder)


# ---- refused


PATCHES, WINDOWS = (f"model.vision_tower.patch_embedding.{n}.weight" for n in (0, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if "layers.3.moe_mlp.up" not in k}, r"lacks model\.layers\.3\.moe_mlp\.up_proj"),
        (lambda w: {k: v for k, v in w.items() if k != WINDOWS}, r"lacks model\.vision_tower\.patch_embedding\.2\.weight"),
        (lambda w: w | {"model.layers.6.moe_mlp.up_proj.weight": torch.ones(2)}, r"no place for: model\.layers\.6\.moe_mlp"),
        (
            lambda w: w | {"model.layers.0.self_attn.moe_gate": torch.ones(2)},
            r"no place for: model\.layers\.0\.self_attn\.moe_g",
        ),
        (
            lambda w: w | {"model.mm_projector.weight": torch.ones(2)},
            r"'model\.mm_projector\.weight' is no weight of .* EVE v2",
        ),
        (lambda w: w | {PATCHES: w[PATCHES].view(48, 3, 8, 32)}, r"embedding\.0\.weight is \(48, 3, 8, 32\), not \(48, 768\)"),
        (lambda w: w | {PATCHES: w[PATCHES].view(48, 12, 8, 8)}, r"embedding\.0\.weight is \(48, 12, 8, 8\), not"),
        (lambda w: w | {WINDOWS: w[WINDOWS].view(64, 48, 1, 4)}, r"embedding\.2\.weight is \(64, 48, 1, 4\), not"),
    ],
)
def test_weights_that_do_not_fit(official_v2_folder, tmp_path, change, message):
    rewrite(official_v2_folder, change)
    with pytest.raises(CheckpointError, match=message):
        convert(official_v2_folder, tmp_path / "ours")
    assert not list(tmp_path.glob("*ours*"))
    with pytest.raises(CheckpointError):
        lit_eve.load(official_v2_folder)


PREPROCESSOR = "vision_tokenizer/preprocessor_config.json"


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config.json", {"mm_hidden_size": None}, "has no 'mm_hidden_size', which every official EVE v2"),
        ("config.json", {"mm_vision_tower": None}, "has no 'mm_vision_tower'"),
        (
            "config.json",
            {"moe_part": "layernorm-attention"},
            "moe_part is 'layernorm-attention', not some of layernorm, self_attn",
        ),
        ("config.json", {"moe_part": None}, "moe_part is None"),
        ("config.json", {"moe_part": "mlp-mlp"}, "moe_part is 'mlp-mlp'"),
        ("config.json", {"add_moe": False}, r"moe_.*|\.image\."),
        ("config.json", {"use_sliding_window": True}, "EVE v2 .* text_config.use_sliding_window = True, only False"),
        ("config.json", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear', only 'default'"),
        ("config.json", {"hidden_size": "wide"}, "describes no Qwen2: .*hidden_size"),
        ("config.json", {"model_type": "eve-llama3"}, f"nor an official {titles()}: .*'eve-llama3'"),
        (PREPROCESSOR, {"max_size": None}, "has no 'max_size': it is no preprocessor of EVE v2"),
        (PREPROCESSOR, {"dense_stride": None}, "has no 'dense_stride'"),
        (PREPROCESSOR, {"do_resize": True}, "do_resize is True, which no EVE v2 has"),
    ],
)
def test_configs_that_are_refused(official_v2_folder, file, keys, message):
    edit(official_v2_folder / file, **keys)
    with pytest.raises(LitEveError, match=message):
        lit_eve.load(official_v2_folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "llama"}, "EVE v2 .* text_config.model_type = 'llama', only 'qwen2'"),
        ({"image_attention": {"name": "bidirectional"}}, "image_attention.name = 'bidirectional', only 'causal'"),
        ({"projector": {"name": "mlp_gelu"}}, "projector.name = 'mlp_gelu', only 'identity'"),
        ({"geometry": SPEC["geometry"] | {"split_token": False}}, "geometry.split_token = False"),
        ({"geometry": tiny.GEOMETRY}, "geometry.name = 'eve_v1', only 'eve_v2'"),
        ({"patch_embedding": {"name": "linear", "width": 32}}, "patch_embedding.name = 'linear', only 'eve_v1' or 'eve_v2'"),
    ],
)
def test_models_that_the_official_code_does_not_know(tmp_path, arguments, message):
    with pytest.raises(CheckpointError, match=message):
        convert(ours_of_nothing(tmp_path / "ours", **arguments), tmp_path / "out")


def test_there_is_no_teacher(official_v2_folder, tmp_path):
    convert(official_v2_folder, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="teacher has no meaning for EVE v2"):
        convert(tmp_path / "ours", tmp_path / "back", teacher=tmp_path)


# ---- training and evaluation go on from it


def test_a_training_starts_from_it(official_v2_folder):
    from lit_eve.training.blueprint import Blueprint

    blueprint = Blueprint(init_from=str(official_v2_folder), geometry={"max_size": 320})
    model = blueprint.build()
    assert model.geometry.max_size == 320 and model.config.decoder_kind["name"] == "experts"
    name = "language_model.model.layers.2.self_attn.v_proj.image.weight"
    assert torch.equal(model.get_parameter(name), official.official_weights()["model.layers.2.self_attn.moe_v_proj.weight"])
