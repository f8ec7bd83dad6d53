"""Images that see both ways, in every family that takes a mask: what eager attention computes under masks from outside."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.decoders import check_image_attention
from lit_eve.models.decoders.families import PACKED, SIDE_BY_SIDE
from tests.models import tiny
from tests.models.attention.images import BIDIRECTIONAL, both_ways, logits_under, numbers, sample, without_labels
from tests.models.decoders.decoder_families import FAMILIES, tiny_model

TRIED = ["cohere2", "gemma3_text", "gpt_neox", "mixtral", "qwen3"]  # by default: one of each kind; the others are slow
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
PARTS = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}, **BIDIRECTIONAL}
LAYOUTS = [[2, (2, 2), (1, 2), 4], [(1, 3), 3], [5]]


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in TRIED else pytest.mark.slow) for name in sorted(PACKED & set(FAMILIES))],
)
def test_a_family_sees_images_both_ways(family):
    known = tiny_model(family)
    model = EveForConditionalGeneration(EveConfig(text_config=known.config, **PARTS)).eval()
    model.language_model.load_state_dict(known.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (*model.patch_embedding.parameters(), *model.projector.parameters()):
            parameter.normal_(std=0.2)
    rows = [sample(model, pieces, seed) for seed, pieces in enumerate(LAYOUTS)]
    expected = [logits_under(model, row, masks(model, row)) for row in rows]
    causal = logits_under(model, rows[0], torch.ones(len(rows[0]["input_ids"]), len(rows[0]["input_ids"])).tril().bool())
    assert (causal - expected[0]).abs().max() > 1e-2, "the mask makes a difference"
    for name in ("packed", "sdpa", "eager"):
        model.language_model.set_attn_implementation(name)
        with torch.no_grad():
            first, second = model(**without_labels(tiny.packed([rows[:2], rows[2:]]))).logits
            batch = without_labels(tiny.padded(rows, "left"))
            positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            beside = model(**batch, position_ids=positions).logits
        assert_close(first, torch.cat(expected[:2]), **CLOSE)
        assert_close(second[: len(expected[2])], expected[2], **CLOSE)
        for found, alone in zip(beside, expected, strict=True):
            assert_close(found[-len(alone) :], alone, **CLOSE)
    model.language_model.set_attn_implementation("packed")
    answers_with_a_cache(model, rows)
    gradients(model, rows)


def masks(model, row):
    """As the decoder wants them: one for each type of its layers, or one for all."""
    config = model.config.text_config
    images, window = numbers(model, row), getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is not None:
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: both_ways(images, windows[kind]) for kind in set(config.layer_types)}
    return both_ways(images, window)


def answers_with_a_cache(model, rows):
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    batch = without_labels(tiny.padded(rows, "left"))
    with torch.no_grad():
        found = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        for row, answer in zip(rows, found, strict=True):
            alone = without_labels(tiny.padded([row]))
            for _ in range(4):
                new = model(**alone).logits[:, -1].argmax(-1)
                alone["input_ids"] = torch.cat([alone["input_ids"], new[:, None]], 1)
                alone["attention_mask"] = torch.ones_like(alone["input_ids"])
            assert answer.tolist() == alone["input_ids"][0, -4:].tolist()


def gradients(model, rows):
    count = {"num_targets": sum(int((row["labels"] != -100).sum()) for row in rows)}
    _, together = tiny.gradients(model, tiny.packed([rows[:2], rows[2:]]), **count)
    _, alone = tiny.gradients(model, *[tiny.padded([row]) for row in rows], **count)
    for name, value in alone.items():
        assert_close(together[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", sorted(SIDE_BY_SIDE))
def test_the_others_are_refused(family):
    with pytest.raises(ConfigError, match=f"image_attention 'bidirectional' is not for decoders of the family '{family}'"):
        check_image_attention(type("Config", (), {"model_type": family}), "bidirectional")
