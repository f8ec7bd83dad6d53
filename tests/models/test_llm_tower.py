"""An encoder made of a language model: its weights, and a view that is seen whole."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.pre_buffer import EQUAL_LAYERS
from lit_eve.models.patch_embeddings import LlmTowerPatchEmbedding
from lit_eve.models.patch_embeddings.llm_tower import build_llm_tower, first_layers, read_both_ways
from lit_eve.processing.geometries import GEOMETRIES

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 16, "initializer_range": 0.3},
}


def make(family: str = "llama", layers: int | None = None, **sizes) -> LlmTowerPatchEmbedding:
    geometry = GEOMETRIES.build({"name": "square", "image_size": 16, "patch_size": 4, "pool_size": 2})
    return LlmTowerPatchEmbedding(geometry, {"model_type": family, **SIZES, **sizes}, layers)


@pytest.mark.parametrize("family", sorted(EQUAL_LAYERS))
def test_every_token_sees_all_of_its_view_and_nothing_else(family):
    """Where all have one position, tokens in another order give the same in that order: no side is hidden."""
    torch.manual_seed(0)
    tower = build_llm_tower(AutoConfig.for_model(family, **SIZES, sliding_window=3)).eval()
    tokens, order = torch.randn(2, 9, 32), torch.randperm(9)
    same_place = {"attention_mask": tokens.new_zeros(2, 1, 9, 9), "position_ids": torch.zeros(1, 9, dtype=torch.long)}

    def at_zero(one):
        return tower(inputs_embeds=one, use_cache=False, **same_place).last_hidden_state

    torch.testing.assert_close(at_zero(tokens[:, order]), at_zero(tokens)[:, order], atol=1e-5, rtol=1e-4)
    seen = read_both_ways(tower, tokens)
    last = tokens.clone()
    last[0, -1] = torch.randn(32)
    moved = (read_both_ways(tower, last) - seen).abs().amax(-1)
    assert (moved[0] > 1e-6).all() and (moved[1] == 0).all()  # each token of this view, none of the other
    assert not torch.allclose(read_both_ways(tower, tokens[:, order]), seen[:, order], atol=0.01)  # positions count


def test_its_layers_are_those_of_the_language_model():
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **SIZES)
    whole = AutoModel.from_config(config).eval()
    tower = build_llm_tower(first_layers(config, 2)).eval()
    tower.load_state_dict({name: value for name, value in whole.state_dict().items() if name in tower.state_dict()})
    tokens = torch.randn(1, 5, 32)
    causal = torch.full((5, 5), float("-inf")).triu(1)[None, None]
    found = tower(inputs_embeds=tokens, attention_mask=causal, use_cache=False).last_hidden_state
    states = whole(inputs_embeds=tokens, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(found, whole.norm(states[2]))


def test_places_begin_at_zero_and_views_stay_apart():
    torch.manual_seed(0)
    part = make().eval()
    assert (part.places == 0).all() and part.width == 32
    patches, image_of_token = torch.randn(2 * 16, 48), torch.arange(2).repeat_interleave(4)
    both = part(patches, image_of_token, 2).tokens
    for number in range(2):
        alone = part(patches[16 * number :][:16], image_of_token[:4], 1).tokens
        torch.testing.assert_close(both[4 * number :][:4], alone)
    nothing = part(patches[:0], image_of_token[:0], 0)
    assert nothing.tokens.shape == (0, 32)
    nothing.tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in part.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gpt2"}, "an encoder cannot be made of a model of the type 'gpt2', only of arcee, granite"),
        ({"layers": 4}, "layers must be a whole number from 1 to 3, got 4"),
        ({"layers": 0}, "layers must be a whole number from 1 to 3, got 0"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=f"patch embedding 'llm_tower': {message}"):
        make(**change)
