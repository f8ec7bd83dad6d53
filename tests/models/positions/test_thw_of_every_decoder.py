"""Time, height and width around every family: what its attention makes of cosines and sines that come from outside."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.decoders.families import PACKED, TURNS_HALVES
from tests.models import tiny
from tests.models.attention.images import sample, without_labels
from tests.models.decoders.decoder_families import FAMILIES, tiny_config, tiny_model

TRIED = ["glm", "gpt_neox", "qwen3"]  # by default: one of each kind; the others are slow
PARTS = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}}
THW = {"positions": {"name": "thw"}}


def section_by_section(rotary, positions):
    """What takes the place of a decoder's rotary embedding, pair by pair; ``positions`` (T, 3)."""
    pairs = rotary.inv_freq.shape[0]
    side = 3 * pairs // 8
    axes = [0] * (pairs - 2 * side) + [1] * side + [2] * side

    def forward(x, position_ids):
        tables = [rotary_forward(x, positions[None, :, axis]) for axis in range(3)]
        pick = lambda kind: torch.stack([tables[axis][kind][..., i] for i, axis in enumerate(axes * 2)], -1)  # noqa: E731
        return pick(0), pick(1)

    rotary_forward = rotary.forward
    return forward


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in TRIED else pytest.mark.slow) for name in sorted(TURNS_HALVES & set(FAMILIES))],
)
def test_a_family_is_turned_in_three_parts(family, monkeypatch):
    known = tiny_model(family)
    models = [EveForConditionalGeneration(EveConfig(text_config=known.config, **PARTS, **more)).eval() for more in ({}, THW)]
    plain, model = models
    for one in models:
        one.language_model.load_state_dict(known.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (*model.patch_embedding.parameters(), *model.projector.parameters()):
            parameter.normal_(std=0.2)
        plain.load_state_dict(model.state_dict())
        row = sample(model, [2, (2, 2), (1, 2), 4])
        batch = without_labels(tiny.padded([row]))
        places = model.position_tokens(batch["input_ids"], batch["image_grid_hw"])
        counted = torch.arange(places.shape[1])[None, :, None].expand(-1, -1, 4)
        before = plain(**batch).logits
        assert_close(model(**batch, token_positions=counted).logits, before, rtol=1e-4, atol=1e-4)
        rotary = plain.get_decoder().rotary_emb
        monkeypatch.setattr(rotary, "forward", section_by_section(rotary, places[0, :, :3]))
        expected = plain(**batch).logits
        assert (expected - before).abs().max() > 1e-2, "the positions make a difference"
        for name in ("packed", "eager"):
            model.language_model.set_attn_implementation(name)
            assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
        assert_close(model(**without_labels(tiny.packed([[row]]))).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "cohere", "olmo3", "gemma3_text", "deepseek_v2", "qwen3_next"])
def test_the_others_are_refused(family):
    config = EveConfig(text_config=tiny_config(family), **PARTS, **THW)
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=f"positions 'thw' is not for decoders of the family '{family}'"),
    ):
        EveForConditionalGeneration(config)


def test_the_list_names_packed_families():
    assert TURNS_HALVES <= PACKED
