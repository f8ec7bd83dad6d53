"""Contracts as functions: what a part of your own must do is tried on a tiny random model, in a second, from any test."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.patch_embeddings import check_image_tokens, takes_grid
from lit_eve.processing import ImageGeometry

_GEOMETRY = {"image_size": 64, "patch_size": 4, "pool_size": 2, "cells": 8}
_DECODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_VOCABULARY = 61
_SHAPES = ((4, 6), (2, 2), (6, 2))  # rows and columns of tokens
_TOLERANCE = 1e-4


def check_patch_embedding(spec: Mapping[str, Any], geometry: Mapping[str, Any] | None = None) -> None:
    """Try all that a patch embedding must do.

    It returns tokens, class tokens and split token of the right shapes, for every geometry; no image sees another of its batch;
    every parameter is initialised and gets a gradient; and a saved model is the same when it is loaded.

    Args:
        spec: ``{"name": ..., **arguments}`` of a registered patch embedding.
        geometry: ``{"name": ..., **arguments}`` other than the class and split token; a small one of EVE v1 by default.

    Raises:
        AssertionError: it does not do one of these; the message says which.
        ConfigError: an unknown name or argument, or shapes that are not those of the contract.
    """
    sizes = dict(geometry) if geometry and "name" in geometry else {**_GEOMETRY, **(geometry or {})}
    for class_token in (True, False):
        for split_token in (True, False):
            _check_tokens(spec, {**sizes, "class_token": class_token, "split_token": split_token})
    model = _model(spec, sizes)
    _check_initialised(model, spec)
    _check_gradients(model, spec)
    _check_reloaded(model, spec)


def _model(spec: Mapping[str, Any], geometry: Mapping[str, Any]) -> EveForConditionalGeneration:
    torch.manual_seed(0)
    decoder = {"model_type": "llama", "vocab_size": _VOCABULARY, **_DECODER}
    projector = {"name": "mlp_gelu"}
    model = EveForConditionalGeneration(
        EveConfig(text_config=decoder, patch_embedding=dict(spec), projector=projector, geometry=dict(geometry))
    )
    for parameter in model.parameters():  # larger than the usual initialisation, so that differences show
        nn.init.normal_(parameter, std=0.15)
    return model.eval()


def _grids(geometry: ImageGeometry) -> tuple[tuple[int, int], ...]:
    """Token grids of three images: of several shapes, unless the geometry has only one."""
    side = geometry.longest_side
    return _SHAPES if side is None or side != geometry.side_step else ((side, side),) * len(_SHAPES)


def _patches(geometry: ImageGeometry, grids: tuple[tuple[int, int], ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised patches (P, 3 * p * p) of images of these token grids, and the image of each token (Q,)."""
    tokens = torch.tensor([rows * columns for rows, columns in grids])
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(int(tokens.sum()) * geometry.pool_size**2, geometry.patch_dim, generator=generator)
    return patches, torch.repeat_interleave(torch.arange(len(grids)), tokens)


def _embed(model: EveForConditionalGeneration, patches: Tensor, image: Tensor, grids: tuple[tuple[int, int], ...]) -> tuple:
    embedding = model.patch_embedding
    grid = {"grid_hw": torch.tensor(grids)} if takes_grid(embedding) else {}
    found = embedding(patches, image, len(grids), **grid)
    name = model.config.patch_embedding["name"]
    return check_image_tokens(found, name, embedding.width, len(image), len(grids), model.geometry)


@torch.no_grad()
def _check_tokens(spec: Mapping[str, Any], geometry: Mapping[str, Any]) -> None:
    model = _model(spec, geometry)
    grids = _grids(model.geometry)
    patches, image = _patches(model.geometry, grids)
    together = _embed(model, patches, image, grids)
    window = model.geometry.pool_size**2
    for index, grid in enumerate(grids):
        own = image == index
        alone = _embed(model, patches[own.repeat_interleave(window)], image[own] - index, (grid,))
        same = [(together.tokens[own], alone.tokens)]
        if alone.classes is not None:
            same.append((together.classes[index], alone.classes[0]))
        for found, expected in same:
            difference = float((found - expected).abs().max())
            assert difference <= _TOLERANCE, (
                f"patch embedding {spec['name']!r}: an image of a batch is embedded otherwise than alone "
                f"(by {difference:.2g}), so it sees the others"
            )


def _check_initialised(model: EveForConditionalGeneration, spec: Mapping[str, Any]) -> None:
    """Models are built on the meta device: what no reset_parameters reaches stays arbitrary memory."""
    kept = {name: value.clone() for name, value in model.patch_embedding.state_dict().items()}
    for parameter in model.patch_embedding.parameters():
        nn.init.constant_(parameter, torch.nan)
    model.patch_embedding.apply(model._init_weights)
    left = [name for name, parameter in model.patch_embedding.named_parameters() if not parameter.isfinite().all()]
    model.patch_embedding.load_state_dict(kept)
    assert not left, (
        f"patch embedding {spec['name']!r}: {', '.join(left)} is initialised by no reset_parameters() of the module that has it"
    )


def _check_gradients(model: EveForConditionalGeneration, spec: Mapping[str, Any]) -> None:
    grids = _grids(model.geometry)
    patches, image = _patches(model.geometry, grids)
    # A projection at random: a sum would not reach what stands before a normalisation.
    parts = [part for part in _embed(model, patches, image, grids) if part is not None]
    sum((part.float() * torch.randn(part.shape, generator=torch.Generator().manual_seed(1))).sum() for part in parts).backward()
    without = [
        name for name, p in model.patch_embedding.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not without, f"patch embedding {spec['name']!r}: {', '.join(without)} gets no gradient"
    model.zero_grad()


@torch.no_grad()
def _check_reloaded(model: EveForConditionalGeneration, spec: Mapping[str, Any]) -> None:
    grids = _grids(model.geometry)
    patches, image = _patches(model.geometry, grids)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = EveForConditionalGeneration.from_pretrained(folder).eval()
    assert loaded.config.patch_embedding == dict(spec), "config.json does not hold the patch embedding's name and arguments"
    for found, expected in zip(_embed(loaded, patches, image, grids), _embed(model, patches, image, grids), strict=True):
        # Not to the bit: where weights lie in memory decides in which order some kernels add.
        assert found is None or torch.allclose(found, expected, rtol=0, atol=_TOLERANCE), (
            f"patch embedding {spec['name']!r}: it embeds otherwise after saving and loading; what it computes with must be "
            "a parameter, a buffer, or follow from its arguments"
        )
