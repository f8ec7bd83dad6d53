"""Adapters in trainings: what trains, one process and two, a kill, and the stage after it that starts from merged weights."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import lit_eve
from lit_eve.cli import main
from lit_eve.errors import ConfigError
from lit_eve.models.checkpoints.loading import read_architecture
from lit_eve.models.checkpoints.merging import iterate_merged
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.cli import EveCLI
from lit_eve.training.stages import Lora, Rule, Stage
from tests.training import world as micro
from tests.training.test_fsdp import arguments, mixed, train  # noqa: F401 - mixed is a fixture
from tests.training.world import scalars

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
ADAPTERS = {  # VoRA's pre-training
    "name": "adapters",
    "lr": 1e-3,
    "rules": [{"pattern": r"patch_embedding|projector|aligner|language_model.*\.lora_"}],
}
WAYS = {  # the settings of the stage with adapters, and of the one after it
    "image_adapter": (
        {"model.decoder_kind": "{name: image_adapter, rank: 4}", "model.stage": json.dumps(ADAPTERS)},
        {"model.decoder_kind": "{name: dense}"},
    ),
    "lora": ({"model.lora": "{rank: 4}"}, {}),
    "dora": ({"model.lora": "{rank: 4, use_dora: true}"}, {}),
}
SHORT = {"trainer.max_steps": 4}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("image_adapter", marks=pytest.mark.slow),
        pytest.param("lora", marks=[needs_peft, pytest.mark.slow]),
        pytest.param("dora", marks=needs_peft),
    ],
)
def way(request):
    return WAYS[request.param]


@pytest.fixture(scope="module")
def runs(mixed, way, tmp_path_factory):  # noqa: F811
    """Adapters first, then all merged weights at a rate that moves nothing; the adapters in two processes as well."""
    folder = tmp_path_factory.mktemp("stages")
    for command in stages(mixed, way, folder, "one", False):
        EveCLI(args=command)
    train(stages(mixed, way, folder, "two", True)[0])
    return folder


def stages(mixed, way, folder, number: str, sharded: bool) -> list[list[str]]:  # noqa: F811
    first, second = folder / number / "adapters", folder / number / "merged"
    return [
        arguments(mixed, first, "1_prealign", None, sharded, **way[0], **SHORT),
        arguments(mixed, second, "2_pretrain", folder / "one" / "adapters", sharded, **way[1], **SHORT, **{"model.lr": 1e-6}),
    ]


@pytest.mark.parametrize("stage", ["adapters", pytest.param("merged", marks=pytest.mark.slow)])
def test_two_processes_train_like_one(runs, mixed, way, stage):  # noqa: F811
    if stage == "merged":
        train(stages(mixed, way, runs, "two", True)[1])
    one, two = (runs / number / stage for number in ("one", "two"))
    for tag in ("train/loss", "train/gradient_norm", "val/loss"):
        expected, found = scalars(one, tag), scalars(two, tag)
        assert len(found) > 1 and found == pytest.approx(expected, rel=1e-4), tag
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_adapters_alone_train(runs, mixed, way):  # noqa: F811
    plain, after = load_file(mixed / "decoder" / "model.safetensors"), load_file(runs / "one/adapters/model/model.safetensors")
    adapters = {name: value for name, value in after.items() if ".lora_" in name}
    assert len(adapters) == 2 * 7 * (3 if "use_dora" in str(way) else 2) and all(value.any() for value in adapters.values())
    own = {name.replace(".base_layer", ""): value for name, value in after.items() if name not in adapters}
    for name, value in plain.items():
        assert torch.equal(own[f"language_model.{name}"], value), name


def test_the_stage_after_starts_from_merged_weights(runs):
    source, merged = runs / "one/adapters", runs / "one/merged"
    config, _ = read_architecture(source)
    before, after = dict(iterate_merged(source, config)), load_file(merged / "model" / "model.safetensors")
    assert after.keys() == {name for name in before if not name.startswith("aligner.")}
    for name, value in after.items():
        assert_close(value, before[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    config, _ = read_architecture(merged)
    assert config.decoder_kind == {"name": "dense"} and config.lora is None


def test_checkpoints_are_models_for_everyone(runs):
    for number in ("one", "two"):
        run = runs / number / "adapters"
        exported = load_file(run / "model" / "model.safetensors")
        for model in (lit_eve.load(run)[0], lit_eve.load(find_checkpoint(run))[0]):
            assert all(torch.equal(model.state_dict()[name], value) for name, value in exported.items())


def test_merged_exports_compute_the_same_without_peft(runs, tmp_path, monkeypatch):
    run, ids = runs / "one" / "adapters", torch.arange(3, 40)[None]
    expected = lit_eve.load(run)[0](input_ids=ids).logits
    assert_close(lit_eve.load(find_checkpoint(run), merge=True)[0](input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    assert main(["convert", "--merge", str(run), str(tmp_path / "merged")]) == 0
    monkeypatch.setitem(sys.modules, "peft", None)
    model, _ = lit_eve.load(tmp_path / "merged", teacher=True)
    assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    aligner = load_file(run / "model" / "aligner.safetensors")
    assert all(torch.equal(model.aligner.state_dict()[name], value) for name, value in aligner.items())


def test_resumed_is_as_never_stopped(runs, mixed, way, tmp_path):  # noqa: F811
    again = shutil.copytree(runs / "one" / "adapters", tmp_path / "again")
    resume(again, runs / "one" / "adapters", arguments(mixed, again, "1_prealign", None, False, **way[0], **SHORT))


def resume(again, expected, command) -> None:
    """Go on from the second of four steps, and be equal to the bit."""
    for path in (again / "checkpoints").iterdir():
        if int("".join(filter(str.isdigit, path.stem))) > 2:
            path.unlink()
    shutil.rmtree(again / "tensorboard")
    EveCLI(args=command)
    found, losses = scalars(again, "train/loss"), scalars(expected, "train/loss")
    assert found == {step: losses[step] for step in found} and 0 < len(found) < len(losses)
    weights, known = (load_file(run / "model" / "model.safetensors") for run in (again, expected))
    assert weights.keys() == known.keys() and all(torch.equal(weights[name], value) for name, value in known.items())


# ---- QLoRA


@needs_peft
@needs_bitsandbytes
def test_packed_weights_train_resume_and_are_saved_as_weights(mixed, tmp_path, monkeypatch, capsys):  # noqa: F811
    run, again = tmp_path / "run", tmp_path / "again"
    settings = {"model.lora": "{rank: 4, dropout: 0.1, quantization: nf4}", **SHORT}
    EveCLI(args=arguments(mixed, run, "1_prealign", None, False, **settings))
    lines = [line for line in capsys.readouterr().out.splitlines() if "language_model" in line and "FROZEN" in line]
    plain = load_file(mixed / "decoder" / "model.safetensors")
    assert f"{sum(value.numel() for value in plain.values()):,}" in lines[0]
    shutil.copytree(run, again)
    resume(again, run, arguments(mixed, again, "1_prealign", None, False, **settings))
    name = "model.layers.0.mlp.up_proj"
    saved = load_file(run / "model" / "model.safetensors")[f"language_model.{name}.base_layer.weight"]
    assert saved.shape == plain[f"{name}.weight"].shape and 0 < (saved - plain[f"{name}.weight"]).abs().max() < 0.02
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = lit_eve.load(run)[0]
    ids = torch.arange(3, 40)[None]
    assert_close(lit_eve.load(run, merge=True)[0](input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)


@needs_peft
@needs_bitsandbytes
def test_packed_weights_are_not_shared_out(mixed, tmp_path):  # noqa: F811
    settings = {"model.lora": "{quantization: nf4}", "trainer.strategy": "fsdp2", **SHORT}
    with pytest.raises((ConfigError, SystemExit), match="fsdp2 cannot share out the packed weights of lora.quantization"):
        EveCLI(args=arguments(mixed, tmp_path, "1_prealign", None, False, **settings))


# ---- what trains


def test_rules_speak_about_adapters_and_never_about_what_is_frozen():
    names = [
        "patch_embedding.weight",
        "language_model.lm_head.weight",
        "language_model.model.layers.0.up_proj.base_layer.weight",
    ]
    adapters = [f"language_model.model.layers.{layer}.up_proj.lora_A.default.weight" for layer in (0, 1)]
    everything = Stage("all", 1e-3, [Rule(r"language_model.model.layers.1", lr=1e-4), Rule(".*")], lora=Lora())
    assert everything.rates(names + adapters) == dict(zip(names + adapters, [1e-3, None, None, 1e-3, 1e-4], strict=True))
    prealign = Stage("prealign", 1e-3, [Rule("patch_embedding")], lora=Lora())
    assert prealign.rates(names + adapters) == dict(zip(names + adapters, [1e-3, None, None, 1e-3, 1e-3], strict=True))
    with pytest.raises(ConfigError, match="has lora, and a rule that freezes all of its adapters"):
        Stage("none", 1e-3, [Rule("language_model", trainable=False), Rule(".*")], lora=Lora()).rates(names + adapters)


@needs_peft
def test_a_whole_stage_may_stand_in_the_file(world):
    stage = {"name": "mine", "lr": 1e-3, "rules": [{"pattern": ".*"}], "lora": {"rank": 2, "target_modules": ["v_proj"]}}
    module = micro.make_module(world, stage=stage)
    module.configure_model()
    trains = {name for name, parameter in module.model.language_model.named_parameters() if parameter.requires_grad}
    parts = [f"model.layers.{layer}.self_attn.v_proj.lora_{half}.default.weight" for layer in (0, 1) for half in "AB"]
    assert trains == set(parts) and module.hparams["stage"]["lora"]["rank"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"rank": 0}}, "lora.rank must be a whole number"),
        (
            {"lora": {"rank": 4}, "decoder_kind": {"name": "experts"}},
            "model.stage: lora beside decoder_kind 'experts' is not proven",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(world, settings, message):
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=message):
        micro.make_module(world, **settings)


@pytest.mark.parametrize(("missing", "settings"), [("peft", {}), ("bitsandbytes", {"quantization": "nf4"})])
def test_packages_that_are_missing_are_named_at_once(world, monkeypatch, missing, settings):
    if missing != "peft":
        pytest.importorskip("peft")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=f"model.stage: .* needs? the package {missing}"):
        micro.make_module(world, lora=Lora(**settings))
