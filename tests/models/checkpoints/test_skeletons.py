"""Buffers that are in no state dict are what the constructor computes, however a model is built."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

import lit_eve
from lit_eve.errors import ConfigError
from lit_eve.models import PATCH_EMBEDDINGS, ImageTokens, LinearPatchEmbedding
from lit_eve.models.checkpoints.skeletons import parameters_on_meta, unsaved_buffers
from lit_eve.training.blueprint import Blueprint
from tests.models import tiny
from tests.tiny_model import make_tiny


@pytest.fixture
def fourier():
    """Registers patch embeddings with frequencies that are no weights."""

    @PATCH_EMBEDDINGS.register("fourier")
    class Fourier(LinearPatchEmbedding):
        def __init__(self, geometry, drawn: bool = False, saved: bool = False) -> None:
            super().__init__(geometry, width=16)
            frequencies = torch.randn(16) if drawn else torch.linspace(1, 3, 16)
            self.register_buffer("frequencies", frequencies, persistent=saved)

        def forward(self, *inputs):
            tokens, classes, split = super().forward(*inputs)
            return ImageTokens((tokens * self.frequencies).sin(), classes, split)

    yield "fourier"
    del PATCH_EMBEDDINGS._variants["fourier"]


@pytest.fixture
def forgetful():
    """Registers patch embeddings that keep a value in a plain attribute."""

    @PATCH_EMBEDDINGS.register("forgetful")
    class Forgetful(LinearPatchEmbedding):
        def __init__(self, geometry, kind: str) -> None:
            super().__init__(geometry, width=16)
            self.inner = nn.Module()
            self.inner.value = {
                "tensor": lambda: torch.ones(3),
                "array": lambda: np.random.randn(3),
                "number": random.random,
                "list": lambda: [random.randrange(10**9)],
                "fixed": lambda: [1.0, float("nan")],
            }[kind]()

    yield "forgetful"
    del PATCH_EMBEDDINGS._variants["forgetful"]


@pytest.mark.parametrize("arguments", [{}, {"drawn": True, "saved": True}], ids=["computed", "drawn and saved"])
def test_frequencies_survive_loading_by_every_way(fourier, arguments, tmp_path):
    model, processor = make_tiny()
    model.config.patch_embedding = {"name": fourier, **arguments}
    torch.manual_seed(3)
    model = type(model)(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    garbage = torch.full((2**20,), torch.nan)  # what uninitialised memory may hold
    del garbage
    for again in (
        lit_eve.load(tmp_path)[0],
        lit_eve.load(tmp_path, dtype="bfloat16")[0],
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        Blueprint(init_from=str(tmp_path)).build(),
    ):
        found = again.patch_embedding.frequencies
        assert torch.equal(found, model.patch_embedding.frequencies.to(found.dtype))
        assert torch.equal(again.get_decoder().rotary_emb.inv_freq, model.get_decoder().rotary_emb.inv_freq)


def test_buffers_that_are_drawn_and_not_saved_are_refused_before_anything_is_built_on_them(fourier):
    with pytest.raises(ConfigError, match="patch_embedding 'fourier' draws 'frequencies' at random.*persistent=True"):
        tiny.model(patch_embedding={"name": fourier, "drawn": True})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tensor", "keeps 'inner.value' as a plain tensor, which is neither saved nor moved"),
        ("array", "draws 'inner.value' at random"),
        ("number", "draws 'inner.value' at random"),
        ("list", "draws 'inner.value' at random"),
    ],
)
def test_what_is_kept_elsewhere_than_in_parameters_and_buffers_is_refused(forgetful, kind, message):
    with pytest.raises(ConfigError, match=f"patch_embedding 'forgetful' {message}"):
        tiny.model(patch_embedding={"name": forgetful, "kind": kind})
    tiny.model(patch_embedding={"name": forgetful, "kind": "fixed"})


def test_parameters_take_no_memory_and_buffers_are_real():
    with parameters_on_meta():
        model = tiny.model("qwen2_tied")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    assert unsaved_buffers(model).keys() == {
        "language_model.model.rotary_emb.inv_freq",
        "language_model.model.rotary_emb.original_inv_freq",
    }
    assert not any(buffer.is_meta for buffer in unsaved_buffers(model).values())
    assert not nn.Linear(2, 2).weight.is_meta
