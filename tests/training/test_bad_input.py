"""What cannot be is refused by ``train.py fit`` in one sentence, before anything is written, and it says what could be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from lit_eve.training.cli import main
from tests.models.decoders.decoder_families import tiny_config
from tests.training import world as micro

ALONE = ("--model.teacher=null", "--model.aligner=null")
LINEAR = {"patch_embedding": {"name": "linear", "width": 16}}
PARTS = {  # an entry, and some of those that are known; other tests register more
    "geometry": ("eve_v1", "eve_v1, .*eve_v2, .*native, .*square, .*tiles"),
    "patch_embedding": ("linear", "eve_v1, .*eve_v2, .*linear"),
    "projector": ("mlp_gelu", "identity, .*mlp_gelu"),
    "decoder_kind": ("experts", "dense, .*experts"),
    "image_attention": ("bidirectional", "bidirectional, .*causal"),
    "positions": ("thw", "neo, .*sequential, .*thw"),
    "optimizer": ("muon", "adamw, .*muon"),
    "template": ("plain", "chat, .*plain, .*vicuna_v1"),
}


@pytest.fixture(scope="module")
def places(world) -> Path:
    """The micro world, with decoders and teachers that do not fit everywhere."""
    for family in ("gpt2", "deepseek_v3"):
        micro.make_decoder(world / family)
        AutoModelForCausalLM.from_config(tiny_config(family, vocab_size=512)).save_pretrained(world / family)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=60, patch_size=12)).save_pretrained(world / "fives")
    return world


def refusal(world, run, parts: dict, *more: str, stage: str = "1_prealign", **overrides) -> str:
    """What the command says; ``parts`` replace whole parts of the recipe."""
    command = micro.arguments(world, run, stage, **overrides)
    command = [one for one in command if not one.startswith(tuple(f"--model.{key}." for key in parts))]
    written = [f"--model.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in parts.items()]
    with pytest.raises(SystemExit) as refused:
        main([*command, *written, *more])
    assert not run.exists(), "nothing was begun"
    assert isinstance(refused.value.code, str) and refused.value.code.startswith("error: ")
    return refused.value.code.removeprefix("error: ")


@pytest.mark.parametrize("key", PARTS)
def test_an_unknown_entry_or_argument(world, tmp_path, key):
    name, known = PARTS[key]
    said = refusal(world, tmp_path / "run", {key: {"name": "nothing"}})
    assert re.match(rf"model.{key}: unknown .*'nothing'; known: .*{known}", said), said
    said = refusal(world, tmp_path / "run", {key: {"name": name, "wdith": 3}})
    assert re.match(rf"model.{key}: .*'{name}' has no (argument|key) 'wdith'; it takes: \w+", said), said


def test_an_unknown_supervision_or_argument(world, tmp_path):
    for entry, words in (
        ({"name": "nothing"}, "unknown supervision 'nothing'; known: .*distillation, .*next_patch"),
        ({"name": "next_patch", "wieght": 2}, "supervision 'next_patch' has no argument 'wieght'; it takes: weight"),
        ({"name": "patch_alignment", "aligner": {"name": "missing"}}, "unknown aligner 'missing'; known: .*layerwise"),
    ):
        said = refusal(world, tmp_path / "run", {"aligner": "null", "supervision": [entry]})
        assert re.match(f"model.supervision: .*{words}", said), said


SIZES = [
    (
        {"geometry": {"name": "square", "image_size": 60, "patch_size": 8}, **LINEAR},
        "image_size = 60 must be a multiple of .* = 8",
    ),
    (
        {"geometry": {"name": "eve_v1", "image_size": 60, "patch_size": 4, "cells": 8}},
        "image_size = 60 must be a multiple of .* = 8",
    ),
    ({"patch_embedding": {"name": "eve_v1", "width": 16, "num_heads": 5}}, "num_heads 5 does not divide the width 16"),
    ({"patch_embedding": {"name": "eve_v1", "width": 0}}, "patch_embedding.width must be a whole number of at least 1, got 0"),
    ({"patch_embedding": {"name": "eve_v2", "patch_width": 0}}, "patch_embedding.patch_width must be a whole number .* got 0"),
    ({"patch_embedding": {"name": "linear", "width": "wide"}}, "patch_embedding.width must be a whole number .* got 'wide'"),
    ({"patch_embedding": {"name": "gemma4_unified", "positions": 2}}, "positions = 2, but images have 8 tokens along a side"),
    ({"projector": {"name": "mlp_gelu", "depth": 0}}, "projector.depth must be a whole number of at least 1, got 0"),
    ({"projector": {"name": "identity"}, **LINEAR}, r"'identity' needs patch_embedding.width = 32 \(the decoder's\), got 16"),
    ({"positions": {"name": "thw", "sections": [1, 1, 1]}}, "positions.sections: .1, 1, 1. must add up to the 4 pairs"),
]


@pytest.mark.parametrize(("parts", "words"), SIZES, ids=[words for _, words in SIZES])
def test_sizes_that_do_not_divide(world, tmp_path, parts, words):
    said = refusal(world, tmp_path / "run", {**parts, "aligner": "null", "teacher": "null"})
    assert re.search(words, said), said


def test_sizes_of_an_aligner(world, tmp_path):
    for arguments, words in (
        ({"layer_interval": 0}, "aligner.layer_interval must be a whole number of at least 1, got 0"),
        ({"num_heads": 5}, "num_heads 5 does not divide the teacher's width 16"),
    ):
        said = refusal(world, tmp_path / "run", {"aligner": {"name": "layerwise", "layer_interval": 1, **arguments}})
        assert re.search(words, said), said


def test_a_teacher_whose_grid_does_not_lie_on_the_students(places, tmp_path):
    said = refusal(places, tmp_path / "run", {"teacher": str(places / "fives")})
    assert re.search("grid of 5 x 5 patches does not lie on the student's: .* 8 tokens, no multiple of 5", said), said
    said = refusal(places, tmp_path / "run", {"geometry": {"name": "native", "patch_size": 8}, **LINEAR})
    assert re.search("with the geometry 'native', the longest sides of images are not all the same", said), said


DECODERS = [
    ("gpt2", {"image_attention": {"name": "bidirectional"}}, "'bidirectional' is not for decoders of the family 'gpt2'"),
    ("gpt2", {"positions": {"name": "thw"}}, "positions 'thw' is not for decoders of the family 'gpt2'"),
    ("gpt2", {"decoder_kind": {"name": "experts"}}, "'experts' cannot be used with a decoder of the family 'gpt2'"),
    ("gpt2", {"decoder_kind": {"name": "pre_buffer", "layers": 1}}, "'pre_buffer' is not for decoders of the family 'gpt2'"),
    (
        "decoder",
        {"decoder_kind": {"name": "experts", "parts": ["heads"]}},
        "must be some of norms, attention, mlp, each once, got",
    ),
    (
        "deepseek_v3",
        {"decoder_kind": {"name": "experts", "parts": ["attention"]}},
        "'attention' cannot be used .* latent vectors",
    ),
    (
        "decoder",
        {"decoder_kind": {"name": "image_adapter", "rank": 2, "modules": ["qkv"]}},
        "'qkv' names no linear layer .*q_proj",
    ),
    (
        "decoder",
        {"image_attention": {"name": "bidirectional"}, "attn_implementation": "flash_attention_2"},
        "'flash_attention_2' cannot let the tokens of an image see each other .*choose one of packed, packed_sdpa, sdpa",
    ),
]


@pytest.mark.parametrize(("decoder", "parts", "words"), DECODERS, ids=[words for *_, words in DECODERS])
def test_decoders_that_cannot_do_that(places, tmp_path, decoder, parts, words):
    said = refusal(places, tmp_path / "run", parts, *ALONE, **{"model.decoder": places / decoder})
    assert re.search(words, said), said


def test_a_checkpoint_of_another_composition(world, tmp_path):
    """To start from, and in the run's own folder."""
    first = tmp_path / "first"
    few = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0}
    main(micro.arguments(world, first, **few))
    for parts, words in (
        (LINEAR, "patch_embedding.name: 'eve_v1' -> 'linear'; patch_embedding.num_heads: 4 -> None$"),
        ({"projector": {"name": "mlp_gelu", "depth": 3}}, "projector.depth: 2 -> 3$"),
    ):
        said = refusal(world, tmp_path / "second", parts, stage="2_pretrain", **{"model.init_from": first})
        assert re.match(f"model.init_from: .*first: .*; keys that are others than there: .*{words}", said), said
    with pytest.raises(SystemExit) as refused:
        main(micro.arguments(world, first, **few, **{"model.projector.depth": 3}))
    assert "holds a run with other settings (model.projector.depth: 2 -> 3)" in refused.value.code
