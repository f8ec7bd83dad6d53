from __future__ import annotations

import cmath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoConfig

from lit_eve.errors import LitEveError
from lit_eve.interpretation.filters import filter_figure, filter_spectrum, patch_filters, spectrum_figure
from lit_eve.models import PATCH_EMBEDDINGS
from lit_eve.processing.images import patchify
from lit_eve.vision_towers import fields_of
from tests import towers
from tests.models import tiny
from tests.models.variants import LLM
from tests.tiny_model import scene_image

PATCHES = {"eve_v1": "width", "eve_v2": "patch_width", "neo": "patch_width", "mono_internvl": "patch_width"}
WINDOWS = {"linear": "width", "gemma4_unified": "width", "vora": "patch_width"}


def test_all_patch_embeddings_are_tried_here() -> None:
    shipped = {name for name in PATCH_EMBEDDINGS if PATCH_EMBEDDINGS.module_of(name) is None}
    assert shipped == PATCHES.keys() | WINDOWS.keys() | {"vision_tower", "llm_tower"}


@pytest.mark.parametrize("name", [*PATCHES, *WINDOWS])
@torch.no_grad()
def test_filters_lie_on_the_pixels_as_the_patch_embedding_sees_them(name: str) -> None:
    model = tiny.model(patch_embedding={"name": name, (PATCHES | WINDOWS)[name]: 16})
    geometry = model.geometry
    filters = patch_filters(model)
    side = 4 if name in PATCHES else 8
    assert filters.shape == (16, 3, side, side)
    image = scene_image(3)
    patches, _ = patchify(image, geometry)
    pixels = np.asarray(image.resize(geometry.resized(*image.size), Image.Resampling.BICUBIC)).astype(np.float32)
    layer = model.patch_embedding.projection if name == "linear" else model.patch_embedding.patch_projection
    outputs = F.linear(patches.float().view(-1, layer.in_features), layer.weight)
    outputs = outputs.view(-1, *((2, 2) if name in PATCHES else (1, 1)), 16)
    windows = pixels.shape[0] // 8, pixels.shape[1] // 8
    outputs = outputs.unflatten(0, windows)  # window, then the patches in it
    for row, column in np.ndindex(pixels.shape[0] // side, pixels.shape[1] // side):
        piece = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]  # (y, x, colour)
        expected = [(filters[e].numpy() * piece.transpose(2, 0, 1)).sum() for e in range(16)]
        per = 8 // side
        found = outputs[row // per, column // per, row % per, column % per]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=0.05)
    assert np.std(pixels) > 10


def test_filters_of_a_language_model_are_those_of_the_matrix_in_front_of_it() -> None:
    geometry = {"name": "square", "image_size": 16, "patch_size": 4, "pool_size": 2}
    model = tiny.model(patch_embedding={"name": "llm_tower", "tower": LLM}, geometry=geometry)
    found = patch_filters(model)
    assert found.shape == (LLM["hidden_size"], 3, 8, 8)
    corner = model.patch_embedding.projection.weight[:, :48].view(-1, 3, 4, 4)  # the first patch of the window
    assert torch.equal(found[:, :, :4, :4], corner)


@pytest.mark.parametrize("kind", towers.CONFIGS)
@torch.no_grad()
def test_filters_of_a_vision_tower_are_those_of_its_convolution(kind: str) -> None:
    tower = fields_of(AutoConfig.for_model(**towers.CONFIGS[kind]))
    geometry = {"name": "square", "image_size": 64, "patch_size": 8}
    model = tiny.model(patch_embedding={"name": "vision_tower", "tower": tower}, geometry=geometry)
    (convolution,) = (one for one in model.patch_embedding.tower.modules() if isinstance(one, torch.nn.Conv2d))
    filters, pixels = patch_filters(model), torch.randn(1, 3, 8, 8)
    convolved = F.conv2d(pixels, convolution.weight)[0, :, 0, 0]
    torch.testing.assert_close((filters * pixels).sum((1, 2, 3)), convolved, rtol=1e-4, atol=1e-5)


def test_the_spectrum_is_that_of_plain_sums() -> None:
    filters = torch.randn(5, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    spectrum = filter_spectrum(filters)
    assert spectrum.power.shape == (4, 3) and spectrum.components.shape == (5, 3, 4, 3)
    for u in range(-2, 2):
        for v in range(-1, 2):
            total = 0.0
            for one in filters.tolist():
                for colour in one:
                    wave = sum(
                        colour[y][x] * cmath.exp(-2j * cmath.pi * (u * y / 4 + v * x / 3)) for y in range(4) for x in range(3)
                    )
                    total += abs(wave) ** 2 / 5
            assert spectrum.power[u + 2, v + 1].item() == pytest.approx(total, rel=1e-4)
    matrix = filters.reshape(5, -1).double()
    eigenvalues = np.linalg.eigvalsh((matrix @ matrix.T).numpy())[::-1]
    np.testing.assert_allclose(spectrum.singular_values.double() ** 2, eigenvalues, rtol=1e-4)
    components = spectrum.components.flatten(1).double()
    np.testing.assert_allclose(components.norm(dim=1), spectrum.singular_values, rtol=1e-4)
    np.testing.assert_allclose(components.T @ components, matrix.T @ matrix, atol=1e-4)


def test_figures_show_the_strongest_filters_and_all_models() -> None:
    filters = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(20).view(-1, 1, 1, 1)
    shown = [axis.get_images()[0].get_array() for axis in filter_figure(filters, 6, columns=4).axes if axis.get_images()]
    assert len(shown) == 6 and all(picture.min() >= 0 and picture.max() <= 1 for picture in shown)
    strongest = max(range(20), key=lambda index: filters[index].norm())
    largest = filters[strongest].abs().max()
    np.testing.assert_allclose(shown[0][1, 2], 0.5 + filters[strongest][:, 1, 2] / largest / 2, rtol=1e-5)
    assert len(filter_figure(torch.zeros(1, 3, 4, 4)).axes) == 1  # no division by 0
    spectra = {"before": filter_spectrum(filters), "after": filter_spectrum(filters * 2)}
    axes = spectrum_figure(spectra).axes
    assert [axis.get_title(loc="left") for axis in axes[:3]] == ["before", "after", "singular values"]
    assert np.array_equal(axes[1].get_images()[0].get_array(), spectra["after"].power)
    assert np.array_equal(axes[2].lines[1].get_ydata(), spectra["after"].singular_values)
    with pytest.raises(LitEveError, match="no spectrum"):
        spectrum_figure({})
    with pytest.raises(LitEveError, match="count is at least 1, not 0"):
        filter_figure(filters, 0)


def test_an_unknown_patch_embedding_is_refused() -> None:
    model = tiny.model()
    model.patch_embedding, model.config.patch_embedding = torch.nn.Identity(), {"name": "own"}
    with pytest.raises(LitEveError, match="filters of the patch embedding 'own' are not known; those of lit_eve's own are"):
        patch_filters(model)
