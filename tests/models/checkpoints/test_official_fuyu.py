"""Checkpoints of Fuyu: each form in which they are found, conversion, training from them, clear words about the rest."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.errors import CheckpointError, LitEveError
from lit_eve.models.checkpoints.conversion import convert
from lit_eve.models.checkpoints.official import FuyuLayout
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.training.blueprint import Blueprint
from tests.models import reference_fuyu as reference
from tests.models.checkpoints.test_convert import edit, rewrite

SPLIT, PATCHES = "patch_embedding.split_embedding", "patch_embedding.projection.weight"
WORDS = "language_model.model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path):
    reference.write_checkpoint(tmp_path / "fuyu")
    return tmp_path / "fuyu"


@pytest.mark.parametrize("form", ["hub", "saved", "memory"])
def test_every_form_is_the_same_model(tmp_path, form):
    theirs = reference.write_checkpoint(tmp_path, form)
    model, processor = lit_eve.load(tmp_path)
    words = theirs.get_input_embeddings().weight
    assert torch.equal(model.patch_embedding.split_embedding, words[reference.NEWLINE])
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert torch.equal(model.get_output_embeddings().weight, theirs.lm_head.weight)
    pixel = (2 * 6 + 1) * 3  # the third row, second column
    assert torch.equal(
        model.patch_embedding.projection.weight[:, [13, 49, 85]], theirs.model.vision_embed_tokens.weight[:, pixel : pixel + 3]
    )
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_theta"], rope["partial_rotary_factor"]) == (25000.0, 0.5)
    geometry = {"name": "padded", "patch_size": 6, "max_width": 96, "max_height": 54, "background": (1, 1, 1)}
    assert geometry.items() <= processor.geometry.to_dict().items() and model.geometry == processor.geometry
    assert (processor.image_mean, processor.image_std) == ((0.5,) * 3, (0.5,) * 3)
    assert processor.template == "fuyu" and processor.image_token_id == model.config.image_token_id == 96


def test_the_type_of_the_weights_is_kept(tmp_path):
    reference.write_checkpoint(tmp_path, built=reference.model().to(torch.bfloat16))
    assert {parameter.dtype for parameter in lit_eve.load(tmp_path)[0].parameters()} == {torch.bfloat16}


def test_tied_words(tmp_path):
    built = reference.model(tie_word_embeddings=True)
    reference.write_checkpoint(tmp_path, "saved", built)
    model, _ = lit_eve.load(tmp_path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_sizes_of_the_hub_where_the_checkpoint_does_not_say_them(folder):
    (folder / "preprocessor_config.json").unlink()
    geometry = lit_eve.load(folder)[1].geometry
    assert (geometry.max_width, geometry.max_height, geometry.patch_size) == (1920, 1080, 6)


def test_a_processor_file_without_settings_of_images_hides_no_other_file(folder):
    expected = lit_eve.load(folder)[1].geometry
    assert expected.max_width != 1920
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "FuyuProcessor"}))
    assert lit_eve.load(folder)[1].geometry == expected


def test_saved_and_converted(folder, tmp_path):
    model, processor = lit_eve.load(folder)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    result = convert(folder, tmp_path / "converted", max_shard_size="20KB")
    assert result.num_weights == len(model.state_dict()) and not (tmp_path / "converted" / "official").exists()
    for name in ("saved", "converted"):
        again, loaded = lit_eve.load(tmp_path / name)
        assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
        assert loaded.to_dict() == processor.to_dict() and loaded.answer_end() == processor.answer_end()
        assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert_close(dict(iterate_weights(folder)), dict(model.state_dict()), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="no official checkpoint can be written of patch_embedding.name = 'linear', only"):
        convert(tmp_path / "converted", tmp_path / "back")


def test_a_training_starts_from_it(folder):
    blueprint = Blueprint(init_from=str(folder), geometry={"max_width": 48, "max_height": 48}, template="vicuna_v1")
    blueprint.check()
    model = blueprint.build()
    assert model.geometry.max_width == 48 and blueprint.processor.template == "vicuna_v1"
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.patch_embedding.split_embedding, stored[WORDS][reference.NEWLINE])
    assert Blueprint(init_from=str(folder)).processor.template == "fuyu"


# ---- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"vision_embed_tokens.scale": torch.ones(2)}, r"(no weight|unexpected).*projection\.scale"),
        (
            lambda w: w | {"vision_tower.weight": torch.ones(2)},
            r"'vision_tower\.weight' is no weight of an official Fuyu checkpoint",
        ),
        (lambda w: {k: v for k, v in w.items() if k != WORDS}, rf"missing.*{WORDS}.*{SPLIT}"),
        (lambda w: {k: v for k, v in w.items() if "vision" not in k}, r"missing.*patch_embedding\.projection\.bias"),
        (lambda w: w | {WORDS: w[WORDS][:5]}, r"has 5 rows, but \|NEWLINE\| is row 5"),
        (lambda w: w | {"vision_embed_tokens.weight": torch.ones(32, 107)}, r"mismatched keys: .*projection\.weight.*107"),
    ],
)
def test_weights_that_do_not_fit(folder, tmp_path, change, message):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        lit_eve.load(folder)
    with pytest.raises(CheckpointError):
        convert(folder, tmp_path / "ours")


def test_missing_weights_have_their_own_names(folder, tmp_path):
    rewrite(folder, lambda weights: {key: value for key, value in weights.items() if key != WORDS})
    with pytest.raises(CheckpointError, match=r"lacks language_model\.model\.embed_tokens\.weight, .*weight \(\|NEWLINE\|\)"):
        convert(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config.json", {"hidden_size": "wide"}, "config.json describes no Fuyu: .*hidden_size"),
        ("config.json", {"num_channels": 1}, "sees 3 channels, not a persimmon with 1"),
        ("config.json", {"text_config": {"model_type": "llama"}}, "Fuyu is a persimmon .*, not a llama with 3"),
        ("preprocessor_config.json", {"do_pad": False}, "do_pad is False; of a Fuyu .* it can only be True"),
        ("preprocessor_config.json", {"resample": 3}, "resample is 3"),
        ("preprocessor_config.json", {"patch_size": {"height": 30, "width": 30}}, "patch_size is .*30.* only be .*6"),
        ("preprocessor_config.json", {"padding_value": 0.5}, "padding_value is 0.5, no whole number of 0 to 255"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 5}}, "size is .*; it must hold width and height"),
        ("preprocessor_config.json", {"size": {"height": 54, "width": 95}}, "geometry.max_width = 95 must be a multiple"),
    ],
)
def test_configs_that_are_refused(folder, file, keys, message):
    edit(folder / file, **keys)
    with pytest.raises(LitEveError, match=message):
        lit_eve.load(folder)


def test_what_the_tokenizer_must_have(folder):
    with pytest.raises(CheckpointError, match="image_size has no meaning for Fuyu"):
        lit_eve.load(folder, image_size=300)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"][reference.NEWLINE][0] = "newline"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"is no tokenizer of Fuyu: it has no \|NEWLINE\|"):
        lit_eve.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer"):
        lit_eve.load(folder)
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json, which says what row of the embeddings is \|NEWLINE\|"):
        list(iterate_weights(folder))


# ---- at published size


def test_names_and_sizes_at_8b(tmp_path):
    """adept/fuyu-8b: 9,408,238,592 parameters, and the row of |NEWLINE| once more."""
    sizes = {"vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 36}
    config = reference.CONFIG | sizes | {"num_attention_heads": 64, "max_position_embeddings": 16384, "patch_size": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layout = FuyuLayout(71019)
    with torch.device("meta"):
        ours = lit_eve.EveForConditionalGeneration(layout.read_config(tmp_path)).state_dict()
        theirs = reference.FuyuForCausalLM(reference.FuyuConfig.from_dict(config)).state_dict()
    found = {
        name: value.shape
        for key, value in theirs.items()
        for name, value in layout.import_weight(reference.hub_name(key), value)
    }
    assert found == {name: value.shape for name, value in ours.items()}
    assert sum(value.numel() for value in theirs.values()) == 9_408_238_592
