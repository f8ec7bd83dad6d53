"""Parts and losses of a subclass of LitEve: trained, saved, resumed, sharded, left out of the exported model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lit_eve
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.cli import EveCLI
from lit_eve.training.stages import Rule, Stage
from tests.training import own_eve
from tests.training import world as micro

TAGS = ("train/loss", "train/language_loss", "train/pixel_loss", "train/gradient_norm", "lr/stage")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An empty folder with a user's module in it."""
    place = tmp_path_factory.mktemp("place")
    shutil.copy(own_eve.__file__, place / "pixels.py")
    return place


def arguments(world, run, *more, **overrides) -> list[str]:
    settings = {"trainer.max_steps": 8, "trainer.val_check_interval": 4, "model_class": "pixels.PixelEve"} | overrides
    return [*micro.arguments(world, run, **settings), *more]


@pytest.fixture(scope="module")
def trained(world, place) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", [*sys.path])
        EveCLI(args=arguments(world, place / "run"))
    return place / "run"


@pytest.mark.slow
def test_killed_and_called_again_from_an_empty_folder(world, place, trained, monkeypatch):
    run = place / "killed"
    kill = ["--trainer.callbacks+=tests.training.killer.KillAt", "--trainer.callbacks.step=6"]
    command = [sys.executable, str(micro.ROOT / "train.py"), *arguments(world, run, *kill)]
    settings = {"PYTHONPATH": str(micro.ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, cwd=place, env=os.environ | settings, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert find_checkpoint(run).name == "step00000004.ckpt"
    monkeypatch.chdir(place)
    EveCLI(args=arguments(world, run))
    assert all(len(micro.scalars(trained, tag)) == 8 for tag in TAGS)
    micro.assert_equal_runs(run, trained, (*TAGS, "val/pixel_loss"), ("model.safetensors", "auxiliary.safetensors"))


def test_the_loss_trains_and_is_in_the_sums(trained):
    for split, weight in (("train", 1.0), ("val", 1.0)):
        values = {
            tag: micro.scalars(trained, f"{split}/{tag}") for tag in ("loss", "language_loss", "alignment_loss", "pixel_loss")
        }
        for step, loss in values.pop("loss").items():
            assert loss == pytest.approx(weight * sum(value[step] for value in values.values()), rel=1e-5)
    losses = list(micro.scalars(trained, "train/pixel_loss").values())
    assert losses[-1] < losses[0]


def test_it_is_left_out_of_the_model_that_answers(trained):
    assert not [name for name in load_file(trained / "model/model.safetensors") if "pixel" in name]
    assert load_file(trained / "model/auxiliary.safetensors").keys() == {"pixel_head.weight", "pixel_head.bias"}
    config = json.loads((trained / "model/config.json").read_text())
    assert config["imports"] == {}  # as stock_inference promises
    from_folder, _ = lit_eve.load(trained)
    (checkpoint,) = (trained / "checkpoints").glob("*.ckpt")
    from_checkpoint, _ = lit_eve.load(checkpoint)
    assert type(from_folder) is EveForConditionalGeneration
    assert all(torch.equal(a, b) for a, b in zip(from_folder.parameters(), from_checkpoint.parameters(), strict=True))
    assert not [name for name, _ in iterate_weights(checkpoint) if "pixel" in name]


def own(kind, world, **kwargs):
    torch.manual_seed(0)
    settings = {"decoder": str(world / "decoder"), "teacher": str(world / "teacher"), **micro.ARCHITECTURE, "lr": 1e-2}
    return kind(**(settings | kwargs))


def following(kind, source, **kwargs):
    return kind(init_from=str(source), lr=1e-2, **kwargs)


def test_a_later_stage_goes_on_with_it(trained):
    (checkpoint,) = (trained / "checkpoints").glob("*.ckpt")
    for source in (trained, checkpoint):
        module = following(own_eve.PixelEve, source)
        module.configure_model()
        stored = load_file(trained / "model/auxiliary.safetensors")
        assert torch.equal(module.pixel_head.weight, stored["pixel_head.weight"])
        assert module._rates["pixel_head.weight"] == 1e-2
    stock = following(lit_eve.LitEve, trained)
    stock.configure_model()

    class Wider(own_eve.PixelEve):
        def auxiliary_parts(self):
            return {"pixel_head": torch.nn.Linear(32, 4)}

    with pytest.raises(CheckpointError, match=r"pixel_head.bias has the shape \(3,\) there and \(4,\) here"):
        following(Wider, trained).configure_model()


def test_stages_name_it(world):
    stage = Stage("own", lr=1e-3, rules=[Rule("pixel_head.bias", trainable=False), Rule("projector")])
    module = own(own_eve.PixelEve, world, stage=stage, lr=None)
    module.configure_model()
    assert module._rates["pixel_head.weight"] == 1e-3 and module._rates["pixel_head.bias"] is None
    assert module.pixel_head.weight.requires_grad and not module.pixel_head.bias.requires_grad
    assert module._rates["patch_embedding.class_embedding"] is None


def test_its_first_weights_follow_from_the_seed_alone(world):
    weights = []
    for _ in range(2):
        module = own(own_eve.PixelEve, world)
        torch.rand(len(weights) + 1)
        module.configure_model()
        weights.append(module.pixel_head.weight)
    assert torch.equal(*weights)


def test_a_checkpoint_without_it_is_refused(world, tmp_path):
    module = own(lit_eve.LitEve, world)
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = own(own_eve.PixelEve, world)
    other.configure_model()
    with pytest.raises(CheckpointError, match="pixel_head.bias: None ->"):
        other.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "TouchedEve",
            r"changed the model after it was built \(model.language_model.model.layers.0.self_attn.is_causal: True -> False\)",
        ),
        ("AttendingEve", r"after it was built \(model.language_model.attention: None -> see_all\)"),
        ("TurnedEve", r"after it was built \(model.language_model.model.rotary_emb.inv_freq: .* in sum -> .* in sum\)"),
        ("BufferedEve", r"after it was built \(model.projector.scale: None -> buffer\)"),
        ("NoisyEve", "NoisyModel draws 'noise' at random and does not save it"),
        ("GrownEve", r"changed the model after it was built \(model.pixel_head: None -> Linear\)"),
        ("LateEve", "pixel_head.weight was added after configure_model"),
        ("BareEve", "BareEve.scale is a parameter in no module"),
        ("NamesakeEve", "the model has a part of that name"),
    ],
)
def test_what_could_not_be_saved_is_refused_at_the_start(world, tmp_path, kind, message):
    module = own(getattr(own_eve, kind), world, teacher=None, aligner=None)
    module.stage = Stage("all", lr=1e-3, rules=[Rule(".*")])
    (batch,) = micro.make_batches(own_model(world), [[[[1]]]])
    with pytest.raises(ConfigError, match=message):
        micro.trainer(tmp_path).fit(module, micro.loader([batch]))


def own_model(world):
    module = own(lit_eve.LitEve, world, teacher=None, aligner=None)
    module.configure_model()
    return module


def test_an_attention_of_ones_own_belongs_into_a_model_class(world, monkeypatch):
    with pytest.raises(ConfigError, match="model.attn_implementation: 'see_all' is of your own"):
        own(lit_eve.LitEve, world, attn_implementation="see_all")
    own(lit_eve.LitEve, world, attn_implementation="sdpa")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "somebody/kernel", own_eve.see_all)
    own(lit_eve.LitEve, world, attn_implementation="somebody/kernel")


# ---- a model that answers otherwise


def test_a_model_class_is_saved_by_name_and_found_again(world, tmp_path, monkeypatch):
    module = own(own_eve.FullEve, world, teacher=None, aligner=None)
    module.configure_model()
    module.model.save_pretrained(tmp_path)
    module.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["imports"] == {"model": "tests.training.own_eve:FullAttention"}
    loaded, _ = lit_eve.load(tmp_path)
    assert type(loaded) is own_eve.FullAttention
    ids = torch.arange(5, 15)[None]
    changed = ids.clone()
    changed[0, -1] = 40
    with torch.no_grad():
        first, second = (
            loaded(input_ids=x, cu_seqlens=torch.tensor([0, 10], dtype=torch.int32)).logits for x in (ids, changed)
        )
        assert_close(first, module.model.eval()(input_ids=ids, cu_seqlens=torch.tensor([0, 10], dtype=torch.int32)).logits)
    later = following(lit_eve.LitEve, tmp_path)
    later.configure_model()
    assert type(later.model) is own_eve.FullAttention
    with pytest.raises(ConfigError, match="would be built as EveForConditionalGeneration: load it with lit_eve.load"):
        EveForConditionalGeneration.from_pretrained(tmp_path)
    monkeypatch.delitem(sys.modules, "tests.training.own_eve")
    for load in (lambda: lit_eve.load(tmp_path), lambda: following(lit_eve.LitEve, tmp_path).blueprint.check()):
        with pytest.raises(ConfigError, match="is of the class FullAttention of `tests.training.own_eve`, without which"):
            load()


def test_a_model_says_which_subclass_trained_it(world, tmp_path, monkeypatch):
    module = own(own_eve.MaskingEve, world, teacher=None, aligner=None)
    module.configure_model()
    module.model.save_pretrained(tmp_path)
    module.processor.save_pretrained(tmp_path)
    lit_eve.load(tmp_path)
    monkeypatch.delitem(sys.modules, "tests.training.own_eve")
    with pytest.raises(
        ConfigError, match="was trained by MaskingEve of `tests.training.own_eve`.*pass --import tests.training.own_eve"
    ):
        lit_eve.load(tmp_path)
