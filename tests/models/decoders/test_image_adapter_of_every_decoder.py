"""Image adapters in every family that is supported: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.families import PACKED, SIDE_BY_SIDE
from lit_eve.models.decoders.image_adapter import ImageAdapter
from lit_eve.models.decoders.linear_layers import BYPASSED
from tests.models.decoders.decoder_families import FAMILIES, VOCAB, tiny_config

# Tried by default: one of each kind. The others are slow.
TRIED = ["cohere", "deepseek_v3", "falcon_h1", "gemma3_text", "gpt_neox", "opt", "qwen2", "qwen3_moe"]
WITHOUT = {
    **dict.fromkeys(BYPASSED, "passes over updates of some of its linear layers"),
    **dict.fromkeys(("falcon", "gpt2", "gpt-sw3"), "has no linear layers of torch's own kind"),
    **dict.fromkeys(("zamba", "zamba2"), r"shared_transf.*\.weight is shared with another layer"),
}
"""Why some families are refused."""
RIGHT = sorted(((PACKED | SIDE_BY_SIDE) & set(FAMILIES)) - WITHOUT.keys())


@pytest.mark.parametrize("family", [pytest.param(name, marks=() if name in TRIED else pytest.mark.slow) for name in RIGHT])
def test_a_family_is_right(family):
    """Fresh: the language model to the bit. Trained: every adapter has its part, and the merged model computes the same."""
    config = tiny_config(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, VOCAB, (2, 9))
    expected, plain = model(input_ids=ids).logits.detach(), dict(model.state_dict())
    kind = ImageAdapter(rank=3)
    kind.extend(model)
    assert {name for name in model.state_dict() if "lora_" not in name} == plain.keys()
    assert torch.equal(model(input_ids=ids).logits, expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    logits = model(input_ids=ids).logits
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.grad is not None and parameter.grad.any(), name
    weights = model.state_dict()
    made = {name: one.compute(*(weights[source] for source in one.sources)) for name, one in kind.merges(weights).items()}
    dense = AutoModelForCausalLM.from_config(config).eval()
    dense.load_state_dict({name: weights[name] for name in plain} | made)
    assert_close(dense(input_ids=ids).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", sorted(WITHOUT.keys() & set(FAMILIES)))
def test_a_family_that_cannot_be_right_is_refused(family):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family))
    with pytest.raises(ConfigError, match=f"decoder_kind 'image_adapter': .*{WITHOUT[family]}"):
        ImageAdapter(rank=3).extend(model)
