"""Adapters are added to the weights that they adapt, by every way: a folder, in memory, a later stage."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoTokenizer

import lit_eve
from lit_eve.cli import main
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.models.checkpoints.export_merged import export_merged
from lit_eve.processing import EveProcessor
from lit_eve.training.blueprint import Blueprint
from tests.models import tiny
from tests.training import world as micro

KIND = {"name": "image_adapter", "rank": 4, "layers": 3}


def without_labels(batch):
    return {key: value for key, value in batch.items() if key not in ("labels", "teacher_pixel_values")}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return micro.make_decoder(tmp_path_factory.mktemp("micro") / "decoder")


@pytest.fixture(scope="module")
def saved(decoder, tmp_path_factory):
    """A trained model with adapters, in a folder."""
    folder = tmp_path_factory.mktemp("adapters")
    model = tiny.model("qwen2_tied", decoder_kind=KIND, with_teacher=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    processor = EveProcessor(tokenizer, geometry=model.geometry, image_token_id=model.config.image_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_merged_model_is_dense_and_computes_the_same(saved, tmp_path):
    model, _ = lit_eve.load(saved)
    assert main(["convert", "--merge", str(saved), str(tmp_path / "merged")]) == 0
    ways = [
        lit_eve.load(tmp_path / "merged", teacher=False)[0],
        lit_eve.load(saved, merge=True)[0],
        Blueprint(init_from=str(saved), decoder_kind={"name": "dense"}).build().eval(),
    ]
    batch = without_labels(tiny.padded(tiny.samples(model, [1, 2, 0])))
    expected = model(**batch).logits
    plain = tiny.model("qwen2_tied").state_dict().keys()
    for merged in ways:
        assert merged.config.decoder_kind == {"name": "dense"} and merged.state_dict().keys() == plain
        assert_close(merged(**batch).logits, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(merged.get_output_embeddings().weight, model.get_output_embeddings().weight)
        weight = "language_model.model.layers.0.self_attn.k_proj.weight"
        assert not torch.equal(merged.get_parameter(weight), model.get_parameter(weight))
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["decoder_kind"] == {"name": "dense"}
    for name, value in load_file(saved / "aligner.safetensors").items():
        assert torch.equal(load_file(tmp_path / "merged" / "aligner.safetensors")[name], value)
    going_on = Blueprint(init_from=str(saved))
    assert going_on.build().config.decoder_kind == KIND, "who does not ask for it keeps adapters"


def test_biases_are_not_merged(decoder, tmp_path):
    """The official code keeps them, and its merged model is no Qwen2; a dense decoder has no place for them."""
    blueprint = Blueprint(decoder=str(decoder), decoder_kind=KIND | {"layers": None, "bias": True}, geometry=tiny.GEOMETRY)
    model = blueprint.build()
    assert model.get_parameter("language_model.model.layers.0.mlp.up_proj.bias").any()
    model.save_pretrained(tmp_path)
    blueprint.processor.save_pretrained(tmp_path)
    for merge in (
        lambda: lit_eve.load(tmp_path, merge=True),
        lambda: export_merged(tmp_path, tmp_path.parent / "merged"),
        lambda: Blueprint(init_from=str(tmp_path), decoder_kind={"name": "dense"}).check(),
    ):
        with pytest.raises(ConfigError, match="adapters with bias: true cannot be merged"):
            merge()
    assert not (tmp_path.parent / "merged").exists()


@pytest.mark.parametrize("kind", [KIND | {"rank": 8}, {"name": "experts"}])
def test_adapters_become_nothing_else(saved, kind):
    with pytest.raises(ConfigError, match=r"model.decoder_kind: .*'rank': 4.* merge it in a stage of its own first"):
        Blueprint(init_from=str(saved), decoder_kind=kind).check()


def test_an_adapter_without_its_half_is_told(saved, tmp_path):
    weights = load_file(saved / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.up_proj.lora_B.weight"]
    for file in saved.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="layers.1.mlp.up_proj.weight cannot be merged without .*up_proj.lora_B.weight"):
        lit_eve.load(tmp_path, merge=True)


def test_a_model_without_adapters_is_not_merged(decoder, tmp_path, capsys):
    blueprint = Blueprint(decoder=str(decoder), geometry=tiny.GEOMETRY)
    blueprint.build().save_pretrained(tmp_path / "dense")
    blueprint.processor.save_pretrained(tmp_path / "dense")
    assert main(["convert", "--merge", str(tmp_path / "dense"), str(tmp_path / "merged")]) == 2
    assert "has no adapters to merge" in capsys.readouterr().err
    lit_eve.load(tmp_path / "dense", merge=True)
    assert main(["convert", "--merge", "--to", "official", str(tmp_path / "dense"), str(tmp_path / "merged")]) == 2
    assert "--to has no meaning beside --merge" in capsys.readouterr().err
