"""Kinds of decoders in trainings: where new weights come from, what a stage trains, checkpoints, one process and two."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import lit_eve
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.models.decoders import DECODER_KINDS, DecoderKind, blocks_of, decoder_of
from lit_eve.models.decoders.routing import image_copies
from lit_eve.training.blueprint import Blueprint
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.cli import EveCLI
from tests.models import tiny
from tests.models.decoders.decoder_families import tiny_config
from tests.training import world as micro
from tests.training.test_fsdp import arguments, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.world import scalars

ALL = {"name": "experts", "parts": ["norms", "attention", "mlp"]}
PARTS = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}}
SHORT = {"trainer.max_steps": 4}
VISION = {  # EVE v2's stage 1: patch embedding and vision copies
    "name": "vision",
    "lr": 1e-3,
    "rules": [{"pattern": r"patch_embedding|projector|aligner|language_model.*\.image\."}],
}


def same_weights(one, two) -> None:
    one, two = one.state_dict(), two.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], value) for name, value in one.items())


def copies_are_twins(model) -> None:
    weights, copies = model.language_model.state_dict(), image_copies(model.language_model)
    assert copies and all(torch.equal(weights[copied], weights[twin]) for copied, twin in copies.items())


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "mixtral", "gemma3_text"])
def test_a_new_model_and_one_that_goes_on(family, world, tmp_path):
    """Whatever form the weights of a family have in files."""
    decoder, kept = micro.make_decoder(tmp_path / "decoder"), tmp_path / "model"
    torch.manual_seed(0)
    known = AutoModelForCausalLM.from_config(tiny_config(family, vocab_size=512))
    known.save_pretrained(decoder)
    new = Blueprint(decoder=str(decoder), decoder_kind=ALL, **PARTS)
    new.check()
    model = new.build()
    copies_are_twins(model)
    assert all(torch.equal(model.language_model.state_dict()[name], value) for name, value in known.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(kept)
    new.processor.save_pretrained(kept)
    assert json.loads((kept / "config.json").read_text())["decoder_kind"] == ALL
    going_on = Blueprint(init_from=str(kept))
    going_on.check()
    same_weights(model, going_on.build())
    same_weights(model, lit_eve.load(kept)[0])
    same_weights(model, Blueprint(init_from=str(kept), decoder_kind={"name": "experts"}).build())


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """A dense model, and one with experts."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, kind in (("dense", None), ("experts", ALL)):
        blueprint = Blueprint(decoder=str(world / "decoder"), decoder_kind=kind, **PARTS)
        blueprint.build().save_pretrained(folder / name)
        blueprint.processor.save_pretrained(folder / name)
    return folder


def test_a_dense_model_becomes_one_with_experts(folders):
    blueprint = Blueprint(init_from=str(folders / "dense"), decoder_kind={"name": "experts", "parts": ["mlp"]})
    blueprint.check()
    model = blueprint.build()
    copies_are_twins(model)
    for name, value in lit_eve.load(folders / "dense")[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [{"name": "dense"}, {"name": "experts", "parts": ["mlp"]}])
def test_experts_do_not_become_anything_else(folders, world, kind):
    with pytest.raises(ConfigError, match=r"model.decoder_kind: .*experts.* has the weights of .*'norms', 'attention', 'mlp'"):
        Blueprint(init_from=str(folders / "experts"), decoder_kind=kind).check()
    with pytest.raises(ConfigError, match=r"model.decoder_kind: .* only a dense decoder can become one of another kind"):
        Blueprint(init_from=str(folders / "experts"), decoder=str(world / "decoder"), decoder_kind=kind, **PARTS).check()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (None, r"unexpected keys: language_model\.model\.layers\.0\.input_layernorm\.image\.weight"),
        ({"name": "experts", "parts": ["mlp"]}, r"unexpected keys: .*input_layernorm\.image\.weight"),
    ],
)
def test_weights_that_the_config_does_not_name_are_told(folders, tmp_path, kind, keys):
    edited = shutil.copytree(folders / "experts", tmp_path / "edited")
    config = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps(config | {"decoder_kind": kind}))
    with pytest.raises(CheckpointError, match=keys):
        lit_eve.load(edited)
    with pytest.raises(CheckpointError, match=r"the model has no weight .*\.image\.|init_from"):
        Blueprint(init_from=str(edited)).check()


def test_a_missing_copy_is_no_new_one(folders, tmp_path):
    """Only a dense model grows."""
    broken = shutil.copytree(folders / "experts", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.image.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: language_model.model.layers.1.mlp.image.up_proj.weight"):
        Blueprint(init_from=str(broken)).check()


def test_a_config_of_before_is_dense(folders, tmp_path):
    old = shutil.copytree(folders / "dense", tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["decoder_kind"]
    (old / "config.json").write_text(json.dumps(config))
    model, _ = lit_eve.load(old)
    assert model.config.decoder_kind == {"name": "dense"}
    same_weights(model, lit_eve.load(folders / "dense")[0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"name": "experts", "parts": ["norm"]}, r"model.decoder_kind: the parts of experts must be some of norms"),
        ({"name": "experts", "part": ["norms"]}, r"model.decoder_kind: kind of decoder 'experts' has no argument 'part'"),
        ({"name": "expert"}, r"model.decoder_kind: unknown kind of decoder 'expert'; known: dense, experts"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(world, kind, message):
    with pytest.raises(ConfigError, match=message):
        micro.make_module(world, decoder_kind=kind)


# ---- trainings


@pytest.fixture(scope="module")
def runs(mixed, tmp_path_factory):  # noqa: F811
    """EVE v2's way: dense first, then vision copies, then everything."""
    folder = tmp_path_factory.mktemp("stages")
    EveCLI(args=arguments(mixed, folder / "dense", "1_prealign", None, False, **SHORT))
    for command in stages(mixed, folder, "one", False):
        EveCLI(args=command)
    return folder


def stages(mixed, folder, number: str, sharded: bool) -> list[list[str]]:  # noqa: F811
    """Commands of the two stages behind the dense one."""
    vision = {"model.decoder_kind": "{name: experts}", "model.stage": json.dumps(VISION), **SHORT}
    first, second = folder / number / "vision", folder / number / "all"
    return [
        arguments(mixed, first, "2_pretrain", folder / "dense", sharded, **vision),
        arguments(mixed, second, "2_pretrain", folder / "one" / "vision", sharded, **SHORT),
    ]


@pytest.fixture(scope="module")
def shared_out(runs, mixed):  # noqa: F811
    """The same in two processes. That experts train and resume there is shown in tests/models/test_variants.py already."""
    train(*stages(mixed, runs, "two", True))
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vision", "all"])
def test_two_processes_train_like_one(shared_out, stage):
    one, two = (shared_out / number / stage for number in ("one", "two"))
    for tag in ("train/loss", "train/gradient_norm", "val/loss"):
        expected, found = scalars(one, tag), scalars(two, tag)
        assert len(found) > 1 and found == pytest.approx(expected, rel=1e-4), tag
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_words_half_does_not_train_in_the_vision_stage(runs):
    before, after = (load_file(runs / run / "model" / "model.safetensors") for run in ("dense", "one/vision"))
    for name, value in after.items():
        if ".image." in name:
            assert not torch.equal(value, before[name.replace(".image.", ".")]), name
        elif name.startswith("language_model."):
            assert torch.equal(value, before[name]), name
    last = load_file(runs / "one/all" / "model" / "model.safetensors")
    assert not any(torch.equal(last[name], after[name]) for name in last if "q_proj.weight" in name or "q_proj.image" in name)


@pytest.mark.parametrize(("number", "made"), [("one", "runs"), pytest.param("two", "shared_out", marks=pytest.mark.slow)])
def test_checkpoints_are_models_for_everyone(number, made, request):
    run = request.getfixturevalue(made) / number / "all"
    exported = load_file(run / "model" / "model.safetensors")
    for model in (lit_eve.load(run)[0], lit_eve.load(find_checkpoint(run))[0]):
        assert model.config.decoder_kind["name"] == "experts"
        assert all(torch.equal(model.state_dict()[name], value) for name, value in exported.items())


@pytest.mark.slow
def test_resumed_is_as_never_stopped(shared_out, mixed, tmp_path):  # noqa: F811
    runs = shared_out
    again = shutil.copytree(runs / "two" / "all", tmp_path / "again")
    for path in (again / "checkpoints").iterdir():
        if int("".join(filter(str.isdigit, path.stem))) > 2:
            shutil.rmtree(path)
    shutil.rmtree(again / "tensorboard")
    train(arguments(mixed, again, "2_pretrain", runs / "one" / "vision", True, **{"trainer.max_steps": 4}))
    found, expected = scalars(again, "train/loss"), scalars(runs / "two" / "all", "train/loss")
    assert found == {step: expected[step] for step in found} and 0 < len(found) < len(expected)


def test_a_checkpoint_of_before_is_resumed(mixed, tmp_path):  # noqa: F811
    """Its config does not know kinds of decoders."""
    run = tmp_path / "run"
    first, more = (arguments(mixed, run, "1_prealign", None, False, **{"trainer.max_steps": steps}) for steps in (2, 4))
    EveCLI(args=first)
    path = find_checkpoint(run)
    checkpoint = torch.load(path, weights_only=True)
    config = json.loads(checkpoint["lit_eve"]["config"])
    del config["decoder_kind"]
    checkpoint["lit_eve"]["config"] = json.dumps(config)
    torch.save(checkpoint, path)
    EveCLI(args=more)
    assert len(scalars(run, "train/loss")) == 4


# ---- a kind of one's own


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


class ScaledMlp(DecoderKind):
    """What the MLPs add is scaled; the scales are drawn."""

    def __init__(self, std: float = 0.1) -> None:
        self.std = std

    def extend(self, language_model) -> None:
        for block in blocks_of(decoder_of(language_model)):
            block.mlp.act_fn = Scaled(block.mlp.act_fn, language_model.config.intermediate_size)

    def drawn(self, language_model):
        for name, parameter in language_model.named_parameters():
            if name.endswith(".scale"):
                yield name, 1 + self.std * torch.randn(parameter.shape)


ScaledMlp.__module__ = "kinds_of_ones_own"


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(DECODER_KINDS._variants, "scaled", ScaledMlp)
    return {"name": "scaled", "std": 0.5}


def test_a_kind_of_ones_own(own, world, folders, tmp_path, monkeypatch):
    for start in ({"decoder": str(world / "decoder"), **PARTS}, {"init_from": str(folders / "dense")}):
        blueprint = Blueprint(**start, decoder_kind=own)
        blueprint.check()
        torch.manual_seed(7)
        model = blueprint.build()
        torch.rand(5)
        assert model.config.imports["decoder_kind"] == "kinds_of_ones_own"
        scales = {name: value for name, value in model.state_dict().items() if name.endswith("scale")}
        assert len(scales) == 2 and all(0.2 < value.std() < 0.8 for value in scales.values())
        same_weights(model, blueprint.build())
    model.save_pretrained(tmp_path)
    blueprint.processor.save_pretrained(tmp_path)
    same_weights(model, lit_eve.load(tmp_path)[0])
    same_weights(model, Blueprint(init_from=str(tmp_path)).build())
    monkeypatch.delitem(DECODER_KINDS._variants, "scaled")
    with pytest.raises(ConfigError, match="needs the kind of decoder 'scaled' from `kinds_of_ones_own`"):
        lit_eve.load(tmp_path)
    with pytest.raises(ConfigError, match="needs the kind of decoder 'scaled' from `kinds_of_ones_own`"):
        Blueprint(init_from=str(tmp_path)).check()
