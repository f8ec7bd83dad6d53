"""lit-eve convert: official checkpoints to ours and back, bit by bit, in little memory, and clear words about bad input."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import lit_eve
from lit_eve.cli import main
from lit_eve.errors import CheckpointError, ConfigError, LitEveError
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.checkpoints import conversion
from lit_eve.models.checkpoints.conversion import convert
from lit_eve.models.checkpoints.weights import file_of_each_weight, read_file, weight_files
from lit_eve.processing import EveV1Geometry
from tests.models import reference, tiny


def all_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        weights |= read_file(file)
    assert weights.keys() == file_of_each_weight(weight_files(folder)).keys()  # none of them twice
    return weights


def without_teacher(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not reference.LAYOUT.is_teacher(key)}


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert (value.dtype, value.shape) == (right[key].dtype, right[key].shape), key
        assert torch.equal(value.contiguous().view(torch.uint8), right[key].contiguous().view(torch.uint8)), key  # NaN, -0.0


def rewrite(folder: Path, change) -> None:
    """Pass all weights through ``change``."""
    weights = change({key: value.clone() for key, value in load_file(folder / "model.safetensors").items()})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# ---- there and back

OTHERS = ("safetensors", False), ("bin", True)  # the other pairs of a kind of file and whether there is an index


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "index"),
    [("safetensors", True), ("bin", False), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)],
)
def test_there_and_back_is_bit_identical(official_folder, tmp_path, kind, index, dtype):
    def change(weights):
        weights = {key: value.to(dtype) for key, value in weights.items()}
        weights["lm_head.weight"][0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
        frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(8) for n in range(8)}
        positions = {"model.vision_clip.backbone.vision_model.embeddings.position_ids": torch.arange(37)[None]}
        return weights | frequencies | positions

    edit(official_folder / "config.json", torch_dtype=str(dtype)[6:], tokenizer_padding_side="right", freeze_x=None)
    rewrite(official_folder, change)
    expected = load_file(official_folder / "model.safetensors")
    reference.split(official_folder, kind, parts=3, index=index)
    ours, back = tmp_path / "ours", tmp_path / "EVE-back"

    there = convert(official_folder, ours, max_shard_size="300KB")
    assert there.layout == "lit_eve" and set(there.dropped) < {key for key in expected if reference.LAYOUT.is_teacher(key)}
    assert len(list(ours.glob("model-*.safetensors"))) > 3
    assert {value.dtype for value in all_weights(ours).values()} == {dtype}
    convert(ours, back, max_shard_size="300KB")
    assert_identical(all_weights(back), without_teacher(expected))
    for file in ("config.json", "tokenizer.model", "tokenizer_config.json", "vision_tokenizer/preprocessor_config.json"):
        assert (back / file).read_bytes() == (official_folder / file).read_bytes(), file

    convert(ours, back, teacher=official_folder / "clip_tiny", overwrite=True)
    assert_identical(all_weights(back), expected)


def test_both_copies_of_the_teacher_come_back(official_folder, tmp_path):
    clip, layer = reference.LAYOUT.teacher_prefixes
    rewrite(official_folder, lambda w: w | {k.replace(clip, layer): v.clone() for k, v in w.items() if k.startswith(clip)})
    convert(official_folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", teacher=official_folder / "clip_tiny")
    assert_identical(all_weights(tmp_path / "back"), load_file(official_folder / "model.safetensors"))
    assert sum(key.startswith(layer) for key in all_weights(tmp_path / "back")) == 71


@pytest.mark.parametrize("name", ["linear", "mlp1x_gelu", "mlp3x_gelu"])
def test_other_projectors(official_folder, tmp_path, name):
    def change(weights):
        weights = {key: value for key, value in weights.items() if "mm_projector" not in key}
        for layer in {"linear": [""], "mlp1x_gelu": ["0."], "mlp3x_gelu": ["0.", "2.", "4."]}[name]:
            weights |= {
                f"model.mm_projector.{layer}weight": torch.rand(64, 64),
                f"model.mm_projector.{layer}bias": torch.rand(64),
            }
        return weights

    edit(official_folder / "config.json", mm_projector_type=name)
    rewrite(official_folder, change)
    convert(official_folder, tmp_path / "ours")
    lit_eve.load(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    assert_identical(all_weights(tmp_path / "back"), without_teacher(load_file(official_folder / "model.safetensors")))


# ---- what is written can be used


@pytest.mark.parametrize("batch", ["b1_image", "b4_mixed"])
def test_a_converted_folder_gives_the_official_losses(official_folder, tmp_path, batch):
    convert(official_folder, tmp_path / "ours", max_shard_size="300KB")
    model, processor = lit_eve.load(tmp_path / "ours", teacher=True)
    expected = reference.results()["batches"][batch]
    inputs = reference.padded_batch(batch, model.geometry, model.config.image_token_id)
    assert model(**inputs).loss.item() == pytest.approx(expected["total_loss"]["value"], abs=1e-5)
    assert processor.tokenizer.bos_token_id == 1
    plain = EveForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert plain(**inputs).language_loss.item() == pytest.approx(model(**inputs).language_loss.item(), abs=1e-6)


def test_the_folder_is_the_one_that_save_pretrained_writes(official_folder, tmp_path):
    convert(official_folder, tmp_path / "ours", max_shard_size="300KB")
    model, processor = lit_eve.load(official_folder)
    model.save_pretrained(tmp_path / "saved", max_shard_size="300KB")
    processor.save_pretrained(tmp_path / "saved")
    for file in ("processor_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / file).read_text() == (tmp_path / "saved" / file).read_text(), file
    ours, saved = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("ours", "saved"))
    saved["text_config"].pop("dtype")  # of no meaning inside a larger model
    assert ours == saved
    index, theirs = (
        json.loads((tmp_path / folder / "model.safetensors.index.json").read_text()) for folder in ("ours", "saved")
    )
    assert index["metadata"] == theirs["metadata"] and index["weight_map"].keys() == theirs["weight_map"].keys()
    names = {file.name for file in (tmp_path / "ours").glob("model-*")}
    assert set(index["weight_map"].values()) == names == {file.name for file in (tmp_path / "saved").glob("model-*")}
    for name in names:
        with safe_open(tmp_path / "ours" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert sum(file.get_tensor(key).nbytes for key in file.keys()) <= 300_000  # noqa: SIM118


def ours_of_nothing(tmp_path: Path, **kwargs) -> Path:
    """A model that was never official, small, but expressible there."""
    layout = {"patch_embedding": {"name": "eve_v1", "width": 16}, "aligner": {"name": "layerwise"}} | kwargs
    model = tiny.model(**layout)
    model.save_pretrained(tmp_path / "ours")
    shutil.copytree(reference.TOKENIZER, tmp_path / "ours", dirs_exist_ok=True)
    return tmp_path / "ours"


def test_a_model_of_our_own_becomes_official_and_comes_back(tmp_path):
    ours = ours_of_nothing(tmp_path)
    result = convert(ours, tmp_path / "EVE-mine")
    config = json.loads((tmp_path / "EVE-mine" / "config.json").read_text())
    assert config["mm_vision_tower"] == "openai/eve-patch4-anypixel-64" and config["mm_projector_type"] == "mlp2x_gelu"
    assert config["requires_cliploss"] is False  # it has no aligner: the official code would look for a CLIP
    assert any("openai/eve-patch4-anypixel-64" in note for note in result.notes)
    sizes = json.loads((tmp_path / "EVE-mine" / config["mm_vision_tower"] / "preprocessor_config.json").read_text())
    assert {"image_size": 64, "patch_stride": 4, "image_size_clip": 64, "patch_stride_clip": 8}.items() <= sizes.items()
    assert (tmp_path / "EVE-mine" / "tokenizer.model").is_file()
    convert(tmp_path / "EVE-mine", tmp_path / "again")
    assert_identical(all_weights(tmp_path / "again"), all_weights(ours))
    before, after = (lit_eve.EveConfig.from_pretrained(folder) for folder in (ours, tmp_path / "again"))
    assert after.geometry == before.geometry and after.image_token_id == before.image_token_id
    model, same = EveForConditionalGeneration.from_pretrained(ours), lit_eve.load(tmp_path / "EVE-mine")[0]
    batch = tiny.padded(tiny.samples(model, [1]))
    assert_close(same(**batch).loss, model(**batch).loss, rtol=0, atol=0)


def test_what_was_changed_since_reaches_the_official_config(official_folder, tmp_path):
    convert(official_folder, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["geometry"]["image_size"] = 336
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "ours", tmp_path / "back")
    theirs, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", official_folder))
    assert theirs == before | {"mm_vision_tower": "openai/eve-patch14-anypixel-336"}
    assert reference.LAYOUT.read_config(tmp_path / "back").geometry["image_size"] == 336


# ---- image sizes


@pytest.mark.parametrize(
    ("tower", "size"),
    [
        ("openai/eve-patch14-anypixel-672", 672),
        ("openai/eve-patch14-anypixel-1344", 1344),
        ("checkpoints/openai/eve-patch14-anypixel-1344/", 1344),
        ("/share/models/eve_patch14_anypixel672", 672),
        ("eve-anypixel-672-patch14", 672),
        ("towers/1344-hd", 1344),
    ],
)
def test_the_image_size_is_in_the_name_of_the_tower(tmp_path, tower, size):
    shutil.copy(reference.WEIGHTS / "config.json", tmp_path)
    edit(tmp_path / "config.json", mm_vision_tower=tower)
    assert reference.LAYOUT.read_config(tmp_path).geometry == EveV1Geometry(image_size=size).to_dict()
    assert reference.LAYOUT.read_config(tmp_path, 2016).geometry["image_size"] == 2016


def test_a_folder_like_the_released_hd_model_needs_no_other(official_folder):
    shutil.rmtree(official_folder / "vision_tokenizer")
    edit(official_folder / "config.json", mm_vision_tower="openai/eve-patch14-anypixel-1344")
    model, processor = lit_eve.load(official_folder)
    assert model.geometry == processor.geometry == EveV1Geometry(image_size=1344)


@pytest.mark.parametrize("tower", ["openai/clip-vit-large-patch14-336", "tower", "run-13440", "v6720"])
def test_an_image_size_that_cannot_be_told_is_asked_for(official_folder, tmp_path, tower, capsys):
    edit(official_folder / "config.json", mm_vision_tower=tower)
    with pytest.raises(CheckpointError, match=rf"{tower}.*image_size=672, or --image-size 672"):
        lit_eve.load(official_folder)
    assert main(["convert", str(official_folder), str(tmp_path / "ours")]) == 2
    assert "--image-size" in capsys.readouterr().err
    assert lit_eve.load(official_folder, image_size=1344)[0].geometry.image_size == 1344
    assert main(["convert", str(official_folder), str(tmp_path / "ours"), "--image-size", "672"]) == 0
    model, processor = lit_eve.load(tmp_path / "ours")
    assert model.geometry.image_size == processor.geometry.image_size == 672
    convert(tmp_path / "ours", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["mm_vision_tower"] == tower
    with pytest.raises(ConfigError, match="has a geometry of its own"):
        lit_eve.load(tmp_path / "ours", image_size=1344)


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"}, r"lacks model\.norm\.weight$"),
        (lambda w: {k: v for k, v in w.items() if "output_layer" not in k}, r"lacks .*compressor\.output_layer"),
        (lambda w: w | {"model.layers.8.mlp.up_proj.weight": torch.ones(2)}, r"no place for: model\.layers\.8\.mlp\.up_proj"),
        (lambda w: w | {"model.vision_tower.mystery": torch.ones(2)}, r"'model\.vision_tower\.mystery' is no weight"),
        (lambda w: w | {"model.vision_tower.patch_embedding.weight": torch.ones(3)}, r"patch_embedding\.weight is \(3,\), not"),
        (lambda w: w | {"lm_head.weight": torch.ones(9, 64)}, r"lm_head\.weight is \(9, 64\), not \(512, 64\)"),
    ],
)
def test_weights_that_do_not_fit(official_folder, tmp_path, change, message):
    rewrite(official_folder, change)
    with pytest.raises(CheckpointError, match=message):
        convert(official_folder, tmp_path / "ours")
    assert not list(tmp_path.glob("*ours*"))


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (lambda f: (f / "config.json").unlink(), {}, r"EVE-tiny holds no config\.json"),
        (
            lambda f: edit(f / "config.json", model_type="llama"),
            {},
            "neither an official EVE v1, EVE v2.* checkpoint .*'llama'",
        ),
        (lambda f: edit(f / "config.json", hidden_size="wide"), {}, r"config\.json describes no LLaMA: .*hidden_size"),
        (lambda f: edit(f / "config.json", mm_hidden_size=None), {}, "has no 'mm_hidden_size'"),
        (lambda f: edit(f / "config.json", mm_projector_type="resampler"), {}, "mm_projector_type is 'resampler'"),
        (lambda f: (f / "model.safetensors").unlink(), {}, "no weights"),
        (lambda f: os.truncate(f / "model.safetensors", 9999), {}, r"model\.safetensors cannot be read, it may be truncated"),
        (lambda f: [file.unlink() for file in f.glob("tokenizer*")], {}, "holds no tokenizer"),
        (lambda f: None, {"max_shard_size": "5 gigs"}, "max_shard_size '5 gigs' is no size such as 5GB"),
        (lambda f: None, {"to": "onnx"}, "'onnx' is no layout; there are official and lit_eve"),
        (lambda f: None, {"to": "official"}, "in the layout 'official' already"),
        (lambda f: None, {"teacher": "somewhere"}, "teacher has no meaning"),
        (lambda f: None, {"tokenizer": "/no/where"}, "where holds no tokenizer"),
    ],
)
def test_sources_that_are_refused(official_folder, tmp_path, break_it, arguments, message):
    break_it(official_folder)
    with pytest.raises(LitEveError, match=message):
        convert(official_folder, tmp_path / "ours", **arguments)
    assert not list(tmp_path.glob("*ours*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "qwen2_tied"}, "text_config.model_type = 'qwen2', only 'llama'"),
        ({"patch_embedding": {"name": "linear", "width": 16}}, "patch_embedding.name = 'linear'"),
        ({"image_attention": {"name": "bidirectional"}}, "image_attention.name = 'bidirectional'"),
        ({"decoder_kind": {"name": "experts"}}, "decoder_kind.name = 'experts'"),
        ({"patch_embedding": {"name": "eve_v1", "width": 16, "num_heads": 4}}, "patch_embedding.num_heads = 4, only 8"),
        *(
            ({"patch_embedding": {"name": "eve_v1", "width": 16, key: False}}, f"patch_embedding.{key} = False, only True")
            for key in ("attend_windows", "attend_images")
        ),
        ({"geometry": tiny.GEOMETRY | {"class_token": False}}, "geometry.class_token = False"),
    ],
)
def test_models_that_the_official_code_does_not_know(tmp_path, arguments, message):
    with pytest.raises(CheckpointError, match=message):
        convert(ours_of_nothing(tmp_path, **arguments), tmp_path / "out")


def test_heads_that_official_code_has_no_place_for_are_named(tmp_path):
    ours = ours_of_nothing(tmp_path, supervision=[{"name": "next_patch"}])
    (note,) = (note for note in convert(ours, tmp_path / "EVE-mine").notes if "left out" in note)
    assert note == "left out are the heads of next_patch, for which the official EVE v1 has no place"


def test_another_teacher_is_refused(official_folder, tmp_path):
    convert(official_folder, tmp_path / "ours")
    clip = load_file(official_folder / "clip_tiny" / "model.safetensors")
    clip.pop("vision_model.pre_layrnorm.bias")
    save_file(clip, official_folder / "clip_tiny" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the teacher .*clip_tiny lacks pre_layrnorm\.bias"):
        convert(tmp_path / "ours", tmp_path / "out", teacher=official_folder / "clip_tiny")


# ---- the output


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_output_is_replaced_only_if_that_is_asked_for(official_folder, tmp_path):
    ours = tmp_path / "ours"
    convert(official_folder, ours)
    before = snapshot(ours)
    with pytest.raises(CheckpointError, match=r"ours exists already.*--overwrite"):
        convert(official_folder, ours)
    with pytest.raises(CheckpointError, match="ours exists already"):
        convert("BAAI/EVE-of-40-GB", ours)  # before it is downloaded
    (ours / "note.txt").write_text("mine")
    convert(official_folder, ours, overwrite=True)
    assert snapshot(ours) == before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(CheckpointError, match="no model's folder"):
        convert(official_folder, tmp_path / "home", overwrite=True)
    for inside in (official_folder, official_folder / "ours", tmp_path):
        with pytest.raises(CheckpointError, match="lie in each other|no model's folder"):
            convert(official_folder, inside, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EVE-tiny", "home", "ours"]


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(official_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(CheckpointError, match="no space: the weights take .* GB free"):
        convert(official_folder, tmp_path / "ours")
    assert not list(tmp_path.glob("*ours*"))


def test_a_write_that_fails_leaves_the_previous_output(official_folder, tmp_path, capsys):
    ours = tmp_path / "ours"
    convert(official_folder, ours)
    before = snapshot(ours)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # as a full disk does, writing fails in the middle
    try:
        code = main(["convert", str(official_folder), str(ours), "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "cannot be written, what was there is unchanged" in capsys.readouterr().err
    assert snapshot(ours) == before and not list(tmp_path.glob(".*"))


def test_a_kill_between_the_two_renames_loses_nothing(official_folder, tmp_path):
    ours = tmp_path / "ours"
    convert(official_folder, ours)
    before = snapshot(ours)
    ours.rename(tmp_path / ".ours.old")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(official_folder, ours)
    assert snapshot(ours) == before


# ---- memory

MEMORY = """
import sys
from pathlib import Path
from lit_eve.models.checkpoints.conversion import convert

def peak(source, output):
    field = lambda name: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name + ":")) * 1024
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = field("VmRSS")
    convert(source, output, max_shard_size="50MB")
    return field("VmHWM") - before

warm, source, ours, back = sys.argv[1:]
peak(warm, ours + "-tiny")
print(peak(source, ours), peak(ours, back))
"""


def large_checkpoint(folder: Path, kind: str) -> int:
    """An official checkpoint of five files of about 50 MB, in bfloat16; returns the size of the largest."""
    width, inner, layers = 1024, 2816, 8
    config = json.loads((reference.WEIGHTS / "config.json").read_text())
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "requires_cliploss": False}
    folder.mkdir()
    shutil.copytree(reference.TOKENIZER, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | sizes | {"mm_vision_tower": "eve-anypixel-672"}))
    with torch.device("meta"):
        model = EveForConditionalGeneration(reference.LAYOUT.read_config(folder))
    shards: list[dict[str, Tensor]] = [{}]
    for name, value in model.state_dict().items():
        value = reference.LAYOUT.export_value(name, value, model.config)
        if sum(tensor.nbytes for tensor in shards[-1].values()) > 46e6:
            shards.append({})
        shards[-1][reference.LAYOUT.export_name(name, config)] = torch.full(value.shape, len(name), dtype=torch.bfloat16)
    for number, shard in enumerate(shards):
        name = f"{number + 1:05d}-of-{len(shards):05d}"
        save = save_file if kind == "safetensors" else torch.save
        save(shard, folder / (f"model-{name}.safetensors" if kind == "safetensors" else f"pytorch_model-{name}.bin"))
    assert len(shards) == 5
    return max(sum(tensor.nbytes for tensor in shard.values()) for shard in shards)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("kind", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_memory_stays_under_two_files(official_folder, tmp_path, kind):
    """All resident pages count, also those of mapped files, which the system could take back."""
    largest = large_checkpoint(tmp_path / "EVE-large", kind)
    paths = [official_folder, tmp_path / "EVE-large", tmp_path / "ours", tmp_path / "back"]
    run = subprocess.run([sys.executable, "-c", MEMORY, *map(str, paths)], capture_output=True, text=True, check=True)
    there, back = map(int, run.stdout.split())
    print(f"largest file {largest / 1e6:.0f} MB, growth {there / 1e6:.0f} MB there, {back / 1e6:.0f} MB back")
    assert 0.3 * largest < there < 2 * largest
    assert 0.3 * largest < back < 2 * largest
    assert_identical(all_weights(tmp_path / "back"), all_weights(tmp_path / "EVE-large"))


# ---- the command


def test_the_command_says_what_it_did(official_folder, tmp_path, capsys):
    assert main(["convert", str(official_folder), str(tmp_path / "ours")]) == 0
    assert "111 weights" in (out := capsys.readouterr().out) and "left out: 71 weights of the frozen CLIP" in out
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "official"]) == 0
    out = capsys.readouterr().out
    assert "note: the official code loads an EVE only from a folder with 'eve' in its name" in out
    assert "note: the teacher is not in it: the official code reads it from clip_tiny" in out
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "x")]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_a_run_folder_is_a_source(tmp_path):
    ours_of_nothing(tmp_path).rename(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "model").rename(tmp_path / "run" / "model")
    assert conversion.convert(tmp_path / "run", tmp_path / "EVE-run").layout == "official"
