"""What a plan says of every family of decoders is right, or it is refused."""

from __future__ import annotations

import pytest

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.families import PACKED, SIDE_BY_SIDE
from lit_eve.testing.composition import build, config_of
from lit_eve.testing.planned import check_planned
from tests.models.decoders.decoder_families import FAMILIES, tiny_config

_NAMES = """
    apertus arcee bitnet cohere cohere2 cohere_compass_text cwm doge ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 granite
    granite_swa helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 llama minicpm3 ministral ministral3 mistral
    nanochat nemotron olmo olmo2 olmo3 persimmon phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2 vaultgemma youtu
"""
PLANNED = set(_NAMES.split())
# One of each kind: side by side, with windows and caps; latent attention; dropout; rotated in part; no groups in a kernel.
TRIED = ("diffllama", "gemma2", "minicpm3", "mixtral", "phi3", "seed_oss", "stablelm")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in TRIED else pytest.mark.slow)
        for name in sorted((PACKED | SIDE_BY_SIDE) & set(FAMILIES))
    ],
)
def test_a_family_is_planned_rightly_or_refused(family):
    model = build(config_of({"text_config": tiny_config(family)}))
    try:
        check_planned(model)
    except ConfigError as error:
        assert family not in PLANNED, error
    else:
        assert family in PLANNED
