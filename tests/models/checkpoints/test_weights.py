"""iterate_weights: every layout under our names, file by file, and clear words about damaged ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints import folders
from lit_eve.models.checkpoints.weights import iterate_weights
from tests.models import reference, tiny

SAME = {"rtol": 0, "atol": 0}


@pytest.fixture
def our_folder(tmp_path):
    model = tiny.model(with_teacher=True)
    model.save_pretrained(tmp_path / "run" / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "run" / "model").glob("model-*.safetensors"))) > 2
    return model, tmp_path / "run"


def test_a_folder_of_ours_gives_the_state_dict_of_the_model(our_folder):
    model, run = our_folder
    pairs = list(iterate_weights(run))  # a run folder: its model/
    assert len(dict(pairs)) == len(pairs)
    assert_close(dict(pairs), dict(model.state_dict()), **SAME)
    assert sum(name.startswith("aligner.") for name, _ in pairs) == len(model.aligner.state_dict())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_an_official_folder_in_any_files(official_folder, kind, index):
    expected = dict(iterate_weights(official_folder))
    reference.split(official_folder, kind, parts=3, index=index)
    assert_close(dict(iterate_weights(official_folder)), expected, **SAME)
    theirs = reference.official_weights()
    assert_close(expected["aligner.norms.1.bias"], theirs["model.vision_tower_compressor.norm_layer.1.0.bias"], **SAME)
    kernel = theirs["model.vision_tower.patch_embedding.weight"]
    assert_close(expected["patch_embedding.patch_projection.weight"], kernel.reshape(len(kernel), -1), **SAME)
    assert not any("clip" in name or "inv_freq" in name for name in expected)


def test_a_language_model_gets_its_prefix(tmp_path):
    decoder = tiny.model("qwen2_tied").language_model
    decoder.save_pretrained(tmp_path)
    weights = dict(iterate_weights(tmp_path))
    expected = {f"language_model.{name}": value for name, value in decoder.state_dict().items() if name != "lm_head.weight"}
    assert_close(weights, expected, **SAME)


def test_files_of_an_old_torch(official_folder):
    weights = load_file(official_folder / "model.safetensors")
    (official_folder / "model.safetensors").unlink()
    torch.save(weights, official_folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(dict(iterate_weights(official_folder))["language_model.lm_head.weight"], weights["lm_head.weight"])


def test_tensors_stay_when_the_files_are_gone(official_folder):
    weights = dict(iterate_weights(official_folder))
    shutil.rmtree(official_folder)
    assert torch.equal(weights["language_model.lm_head.weight"], reference.official_weights()["lm_head.weight"])


class Code:
    """What a pickle can smuggle in."""

    def __reduce__(self):
        return print, ("this must not run",)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def add(folder: Path, weights: dict, part: int = 1) -> None:
    file = folder / f"pytorch_model-{part:05d}-of-00003.bin"
    torch.save(torch.load(file) | weights, file)


@pytest.mark.parametrize(
    ("kind", "break_it", "message"),
    [
        ("safetensors", lambda f: cut(f / "model-00002-of-00003.safetensors"), r"model-00002-of-00003.* truncated"),
        ("safetensors", lambda f: (f / "model-00003-of-00003.safetensors").unlink(), "index.json names model-00003.*not there"),
        ("safetensors", lambda f: (f / "model.safetensors.index.json").write_text("{}"), "weight_map"),
        ("bin", lambda f: cut(f / "pytorch_model-00002-of-00003.bin"), r"model-00002-of-00003.* truncated"),
        ("bin", lambda f: add(f, {"lm_head.weight": Code()}), r"00001-of-00003\.bin holds pickled Python objects.*refused"),
        ("bin", lambda f: add(f, {"steps": 3}), r"'steps' is a int, no tensor"),
        ("bin", lambda f: [add(f, {"lm_head.weight": torch.ones(1)}, n) for n in (1, 2)], "'lm_head.weight' stands in two"),
        ("bin", lambda f: add(f, {"model.unknown": torch.ones(1)}), "'model.unknown' is no weight of an official"),
        ("bin", lambda f: torch.save([1], f / "pytorch_model-00001-of-00003.bin"), "holds a list, not a dict"),
        ("bin", lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
        ("bin", lambda f: (f / "config.json").unlink(), r"no config\.json"),
    ],
)
def test_damage_is_named_when_called(official_folder, capsys, kind, break_it, message):
    reference.split(official_folder, kind, parts=3, index=True)
    break_it(official_folder)
    with pytest.raises(CheckpointError, match=message):
        iterate_weights(official_folder)
    assert "this must not run" not in capsys.readouterr().out


def test_a_damaged_aligner_is_named_when_called(our_folder):
    cut(our_folder[1] / "model" / "aligner.safetensors")
    with pytest.raises(CheckpointError, match="aligner.safetensors cannot be read"):
        iterate_weights(our_folder[1])


def test_an_absent_file_is_noticed_without_an_index(official_folder):
    reference.split(official_folder, "bin", parts=3, index=False)
    (official_folder / "pytorch_model-00003-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match="holds 2 of the 3 files"):
        iterate_weights(official_folder)


def test_a_hub_name_without_the_hub_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"BAAI/EVE-7B-v1\.0 is no folder here.* cannot be reached"):
        folders.find_model_folder("BAAI/EVE-7B-v1.0")
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/nanoo is no folder: "):  # a typo in a path asks no hub
        folders.find_model_folder("runs/nanoo")


def test_the_cache_of_the_hub_is_used_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--BAAI--EVE-tiny"
    shutil.copytree(reference.WEIGHTS, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    names = {reference.LAYOUT.import_name(name) for name in reference.official_weights()} - {None}
    assert {name for name, _ in iterate_weights("BAAI/EVE-tiny")} == names
