"""Experts in every family that reads packed rows as they are: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.decoders.experts import HEADS_FIRST, PARTS
from lit_eve.models.decoders.families import PACKED, SIDE_BY_SIDE
from lit_eve.models.decoders.routing import image_copies
from lit_eve.testing.samples import without_labels
from tests.models import tiny
from tests.models.decoders.decoder_families import FAMILIES, tiny_config

# Tried by default: one of each kind. The others are slow.
TRIED = [
    *("cohere", "dbrx", "deepseek_v3", "exaone4", "gemma3_text", "gpt_neox", "granitemoe", "jetmoe", "modernbert-decoder"),
    *("olmo", "phi", "qwen2", "qwen3_moe"),
]
AROUND = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}}
NORMALISED = {"cohere": {"use_qk_norm": True}, "glm4_moe": {"use_qk_norm": True}, "phi": {"qk_layernorm": True}}
LATENT = ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu")
WITHOUT = {
    **dict.fromkeys(LATENT, ("attention", "KV cache holds latent vectors")),
    "jetmoe": ("attention", "experts .JetMoeMoA. is neither a linear layer nor a norm"),
    "nanochat": ("norms", "names no weights of a decoder of the family .nanochat."),
    "olmo": ("norms", "names no weights of a decoder of the family .olmo."),
}
"""The parts that some families do not have, and why."""
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def build(family: str, kind: dict | None) -> EveForConditionalGeneration:
    config = tiny_config(family, **NORMALISED.get(family, {}))
    torch.manual_seed(0)
    model = EveForConditionalGeneration(EveConfig(text_config=config, decoder_kind=kind, **AROUND)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".image." in name:
                continue
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@torch.no_grad()
def copy_twins(model: EveForConditionalGeneration, noise: float = 0.0) -> None:
    weights = model.language_model.state_dict()
    for copied, twin in image_copies(model.language_model).items():
        weights[copied].copy_(weights[twin])
        if weights[copied].is_floating_point():
            weights[copied].add_(torch.randn_like(weights[copied]), alpha=noise)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in TRIED else pytest.mark.slow) for name in sorted(PACKED & set(FAMILIES))],
)
def test_a_family_is_right(family):
    parts = [part for part in PARTS if part != WITHOUT.get(family, (None,))[0]]
    model = build(family, {"name": "experts", "parts": parts})
    dense = build(family, None)
    dense.load_state_dict({name: value for name, value in model.state_dict().items() if ".image." not in name})
    rows = tiny.samples(model, [1, 2, 0])
    batch = without_labels(tiny.packed([rows[:2], rows[2:]]))
    with torch.no_grad():
        copy_twins(model)
        dense_logits = dense(**batch).logits
        assert_close(model(**batch).logits, dense_logits, **CLOSE)
        copy_twins(model, noise=0.1)
        alone = [model(**without_labels(tiny.padded([row]))).logits[0] for row in rows]
        first, second = model(**batch).logits
        assert_close(first, torch.cat(alone[:2]), **CLOSE)
        assert_close(second[: len(alone[2])], alone[2], **CLOSE)
        differs = (first - dense_logits[0]).abs().amax(1) > 1e-4
        image = int((batch["input_ids"][0] == model.config.image_token_id).nonzero()[0])
        assert not differs[:image].any() and differs[image : len(alone[0])].all()
        assert_close(second, dense_logits[1], **CLOSE)
        as_many_tokens_as_heads(model, rows[0], alone[0])
        words_go_on_from_a_cache(model, rows[0], alone[0])
    text = tiny.packed([rows[2:]])
    _, gradients = tiny.gradients(model.train(), text)
    copies = image_copies(model.language_model)
    trained = [name for name in copies if f"language_model.{copies[name]}" in gradients]
    assert trained and not any(gradients[f"language_model.{name}"].any() for name in trained)


def as_many_tokens_as_heads(model, row, expected):
    """Where the shape does not tell which dimension is which."""
    heads = {model.config.text_config.num_attention_heads, getattr(model.config.text_config, "num_key_value_heads", 1)}
    embeds = model.embed_inputs(row["input_ids"][None], row["pixel_values"], row["image_grid_hw"])
    mask = row["input_ids"][None] == model.config.image_token_id
    start = int(mask.nonzero()[0, 1]) - 1
    for length in heads:
        given = {"inputs_embeds": embeds[:, start : start + length], "image_mask": mask[:, start : start + length]}
        longer = {"inputs_embeds": embeds[:, start : start + 7], "image_mask": mask[:, start : start + 7]}
        assert_close(model(**given).logits, model(**longer).logits[:, :length], **CLOSE)


def words_go_on_from_a_cache(model, row, expected):
    ids, images = row["input_ids"][None], {key: row[key] for key in ("pixel_values", "image_grid_hw")}
    prompt = model(input_ids=ids[:, :-2], **images, use_cache=True)
    for place in (-2, -1):
        step = model(input_ids=ids[:, place:][:, :1], past_key_values=prompt.past_key_values)
        assert_close(step.logits[0, -1], expected[place], **CLOSE)


@pytest.mark.parametrize("family", sorted(WITHOUT.keys() & set(FAMILIES)))
def test_a_part_that_cannot_be_right_is_refused(family):
    part, why = WITHOUT[family]
    with pytest.raises(ConfigError, match=f"decoder_kind.parts: '{part}' .*{why}"):
        build(family, {"name": "experts", "parts": [part]})


@pytest.mark.parametrize("family", sorted(SIDE_BY_SIDE & {"gpt2", "qwen3_next", "falcon"}))
def test_families_that_lay_samples_side_by_side_are_refused(family):
    with pytest.raises(ConfigError, match=f"decoder_kind 'experts' cannot be used with a decoder of the family '{family}'"):
        build(family, {"name": "experts"})


def test_families_are_those_of_the_lists():
    assert set(HEADS_FIRST) <= PACKED and WITHOUT.keys() <= PACKED
