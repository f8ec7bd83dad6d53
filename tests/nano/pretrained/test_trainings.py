"""The language model and the teacher: trained for a few steps, saved for transformers, gone on with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPModel, CLIPVisionModel, SiglipModel, SiglipVisionModel

from lit_eve.errors import ConfigError
from lit_eve.losses.teacher import load_teacher
from lit_eve.nano.pretrained import fit as fit_module
from lit_eve.nano.pretrained.language_model import (
    Documents,
    LanguageModelSettings,
    LitLanguageModel,
    compose_embeddings,
    train_language_model,
)
from lit_eve.nano.pretrained.teacher import LitTeacher, Pairs, TeacherSettings, train_teacher
from lit_eve.nano.progress import read_settings, results_of
from lit_eve.nano.world.datasets import DOCUMENTS, WorldSettings, make_world
from lit_eve.nano.world.tokenizer import make_tokenizer
from lit_eve.processing import CLIP_MEAN
from lit_eve.vision_towers import read_tower

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
WORLD = WorldSettings(text=64, prealign=4, pretrain=24, finetune=4, validation=16, test=16, workers=1)
LANGUAGE_MODEL = LanguageModelSettings(width=32, layers=1, heads=2, feed_forward=32, steps=6, tokens=400, checkpoint_every=2)
TEACHER = TeacherSettings(
    width=32, layers=2, heads=2, feed_forward=32, text_layers=1, projection=16, steps=6, batch=8, checkpoint_every=2
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("run"), WORLD).parent


@pytest.fixture
def other_run_dir(run_dir, tmp_path):
    (tmp_path / "data").symlink_to(run_dir / "data")
    return tmp_path


def kill_after(monkeypatch, steps: int) -> None:
    """Batch number ``steps`` never comes: the process dies there."""
    honest = fit_module.Batches.__iter__

    def dying(self):
        for batch in honest(self):
            if self.seen > steps:
                raise SystemExit("killed")
            yield batch

    monkeypatch.setattr(fit_module.Batches, "__iter__", dying)


@pytest.mark.parametrize(
    ("train", "settings", "result"),
    [(train_language_model, LANGUAGE_MODEL, "answer_accuracy"), (train_teacher, TEACHER, "retrieval_at_1")],
)
def test_a_killed_training_ends_with_the_same_weights(run_dir, other_run_dir, monkeypatch, train, settings, result):
    folder = train(run_dir, settings)
    assert 0 <= results_of(folder)[result] <= 1
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(SystemExit):
            train(other_run_dir, settings)
    again = train(other_run_dir, settings)
    weights, others = (load_file(path / "model.safetensors") for path in (folder, again))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    train(run_dir, settings)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before, "what is done is not done again"


@pytest.mark.parametrize(("train", "settings"), [(train_language_model, LANGUAGE_MODEL), (train_teacher, TEACHER)])
def test_the_optimizer_is_a_choice(run_dir, other_run_dir, train, settings):
    default = load_file(train(run_dir, settings) / "model.safetensors")
    folder = train(other_run_dir, replace(settings, optimizer={"name": "muon"}))
    chosen = load_file(folder / "model.safetensors")
    states = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"].values()
    assert {"momentum_buffer"} in [state.keys() for state in states]
    assert not any(torch.equal(chosen[name], value) for name, value in default.items() if name.endswith("v_proj.weight"))


@pytest.mark.parametrize("settings", [LanguageModelSettings, TeacherSettings])
def test_a_typo_in_the_optimizer_is_named(tmp_path, settings):
    (tmp_path / "typo.yaml").write_text("optimizer: {name: muon, momentun: 0.9}")
    with pytest.raises(ConfigError, match="typo.yaml: optimizer 'muon' has no argument 'momentun'; it takes: momentum"):
        read_settings(settings, tmp_path / "typo.yaml")


def test_language_model_loads_with_transformers_and_answers(run_dir):
    folder = train_language_model(run_dir, LANGUAGE_MODEL)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.config.vocab_size == len(tokenizer)
    prompt = tokenizer("USER: is there a circle? ASSISTANT:", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.input_ids.shape[1]
    assert list((folder / "tensorboard").glob("events*"))


def test_language_model_learns_from_every_token_but_padding(run_dir):
    documents = Documents(run_dir / "data" / "text", make_tokenizer(), tokens=400)
    assert sorted(index for batch in documents.batches for index in batch) == list(range(WORLD.text))
    for index in range(len(documents.batches)):
        batch = documents(index)
        padding = batch["labels"] == -100
        assert torch.equal(batch["input_ids"][~padding], batch["labels"][~padding])
        assert (batch["input_ids"][padding] == documents.pad_token_id).all()
        assert padding.numel() <= 400 or len(padding) == 1
    again = Documents(run_dir / "data" / "text", make_tokenizer(), 400)
    assert torch.equal(documents(1)["input_ids"], again(1)["input_ids"])


def test_no_chat_is_read_before_its_time(run_dir):
    folder, tokenizer, steps = run_dir / "data" / "text", make_tokenizer(), 40
    lines = [json.loads(line) for line in (folder / DOCUMENTS).read_text().splitlines()]
    documents = Documents(folder, tokenizer, tokens=400, seed=1, steps=steps, chats_from=0.2)
    assert len(documents.batches) == steps
    are_chats = [{lines[i]["kind"] == "chat" for i in batch} for batch in documents.batches]
    assert are_chats[:8] == [{False}] * 8, "a batch is of chats or of none, and the first 20 % are of none"
    assert all(len(kinds) == 1 for kinds in are_chats) and {True} in are_chats[8:] and {False} in are_chats[8:]
    whole = Documents(folder, tokenizer, tokens=400, seed=1, steps=steps)
    share = sum(kinds == {True} for kinds in are_chats) / steps
    assert share == pytest.approx(sum(lines[batch[0]]["kind"] == "chat" for batch in whole.batches) / steps, abs=0.02)
    late = Documents(folder, tokenizer, tokens=400, seed=1, steps=steps, chats_from=0.5)
    assert [{lines[i]["kind"] == "chat" for i in batch} for batch in late.batches[20:]] == [{True}] * 20, "all that fit"
    others = Documents(folder, tokenizer, tokens=400, seed=2, steps=steps, chats_from=0.2)
    assert others.batches != documents.batches


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="width: 32 is no multiple of heads: 6"):
        LanguageModelSettings(width=32, heads=6)
    with pytest.raises(ConfigError, match="matching_heads: 5 are more than heads: 4"):
        LanguageModelSettings(width=32, heads=4, matching_heads=5)


def test_words_made_of_words_begin_as_their_sum():
    tokenizer = make_tokenizer()
    id_of = tokenizer.convert_tokens_to_ids
    table = torch.randn(len(tokenizer), 64)
    before = table.clone()
    compose_embeddings(table, id_of)
    expected = sum(before[id_of(word)] for word in ("small", "red", "circle")) / 3**0.5
    assert torch.equal(table[id_of("small-red-circle")], expected)
    kept = [id_of(word) for word in ("red", "circle", "?", "row-1")]
    assert torch.equal(table[kept], before[kept])


def test_matching_heads_look_for_what_is_like_themselves():
    settings = replace(LANGUAGE_MODEL, width=32, heads=4, matching_heads=3)
    for layer in LitLanguageModel(settings, make_tokenizer()).model.model.layers:
        attention = layer.self_attn
        assert torch.equal(attention.k_proj.weight[:24], attention.q_proj.weight[:24])
        assert torch.equal(attention.o_proj.weight[:, :24], attention.v_proj.weight[:24].T)
        assert not torch.equal(attention.k_proj.weight[24:], attention.q_proj.weight[24:])


@pytest.mark.parametrize(
    ("family", "whole", "half", "mean"),
    [("clip", CLIPModel, CLIPVisionModel, CLIP_MEAN), ("siglip", SiglipModel, SiglipVisionModel, (0.5, 0.5, 0.5))],
)
def test_teacher_loads_as_its_family_and_as_the_models_teacher(other_run_dir, family, whole, half, mean):
    folder = train_teacher(other_run_dir, replace(TEACHER, family=family))
    vision, info = half.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(vision(pixels).last_hidden_state, whole.from_pretrained(folder).vision_model(pixels).last_hidden_state)
    assert load_teacher(folder)(pixels).shape == (2, 16, TEACHER.width)
    assert read_tower(folder, "model.teacher")[1].mean == mean


def test_a_siglip_says_of_each_pair_whether_it_is_right(run_dir):
    settings = replace(TEACHER, family="siglip", batch=8)
    teacher, pairs = LitTeacher(settings, make_tokenizer()), Pairs(run_dir / "data" / "pretrain", make_tokenizer(), settings)
    batch = pairs(0)
    output = teacher(batch, return_loss=True)
    logits = 10 * output.image_embeds @ output.text_embeds.T - 10
    right = 2 * torch.eye(8) - 1
    assert output.loss.item() == pytest.approx(-(right * logits).sigmoid().log().sum().item() / 8, rel=1e-5)
    assert batch["input_ids"].shape == (8, 64)  # the last place is read, whatever is padded
    with pytest.raises(ConfigError, match="family must be one of clip, siglip, got 'dino'"):
        TeacherSettings(family="dino")


def test_teacher_sees_every_pair_once_per_epoch(run_dir):
    pairs = Pairs(run_dir / "data" / "pretrain", make_tokenizer(), replace(TEACHER, batch=8))
    first = torch.cat([pairs(step)["pixels"] for step in range(3)])
    second = torch.cat([pairs(step)["pixels"] for step in range(3, 6)])
    assert first.shape == (24, 3, 64, 64) and first.dtype == torch.uint8
    assert len(first.flatten(1).unique(dim=0)) == 24
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten(1).unique(dim=0), second.flatten(1).unique(dim=0))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("world", WorldSettings), ("0_language_model", LanguageModelSettings), ("0_teacher", TeacherSettings)],
)
@pytest.mark.parametrize("world", ["nano", "nano_hard"])
def test_shipped_settings_can_be_read(world, name, settings):
    assert isinstance(read_settings(settings, EXPERIMENTS / world / f"{name}.yaml"), settings)
