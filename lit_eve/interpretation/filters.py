"""The patch embedding's filters: what its first matrix looks for in the pixels of a patch.

Notation: E filters, y x x pixels of a patch or pooling window, R = min(E, 3 y x) singular values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from lit_eve.errors import LitEveError
from lit_eve.models.patch_embeddings import PATCH_EMBEDDINGS
from lit_eve.plotting import drawing, shades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_eve.models import EveForConditionalGeneration


@dataclass(frozen=True)
class FilterSpectrum:
    """Which frequencies filters look for, and how many directions of pixel space they span."""

    power: Tensor
    """(y, x) float32: power of the 2-D Fourier transform, the mean over filters of the sum over colours; the frequency 0 is at
    (y // 2, x // 2)."""
    singular_values: Tensor
    """(R,) float32 of the E x 3 y x matrix, the largest first."""
    components: Tensor
    """(R, 3, y, x) float32: the right singular vectors as images, times their singular values (as in the ViT paper's figure 7,
    arXiv 2010.11929). All filters are sums of them."""


def patch_filters(model: EveForConditionalGeneration) -> Tensor:
    """The filters as images: (E, 3, y, x) float32, of a patch (as in ``eve_v1``) or of a whole pooling window (``linear``).

    They are applied to normalised pixels; those of ``gemma4_unified`` behind one more normalisation, of each window. A
    ``vision_tower`` has those of its encoder's convolution.

    Raises:
        LitEveError: the patch embedding is another one, so that it is not known what its filters are.
    """
    name, geometry = model.config.patch_embedding["name"], model.geometry
    if name not in PATCH_EMBEDDINGS or PATCH_EMBEDDINGS.module_of(name) is not None:
        raise LitEveError(f"the filters of the patch embedding {name!r} are not known; those of lit_eve's own are")
    if name == "vision_tower":
        convolution = next(module for module in model.patch_embedding.tower.modules() if isinstance(module, nn.Conv2d))
        return convolution.weight.detach().float().cpu()
    layer = model.patch_embedding.projection if name in ("linear", "llm_tower") else model.patch_embedding.patch_projection
    # The patches of a window lie one behind another; of a patch alone, the window is one.
    pool = 1 if layer.in_features == geometry.patch_dim else geometry.pool_size
    sides = {"i": pool, "j": pool, "c": 3, "y": geometry.patch_size, "x": geometry.patch_size}
    return rearrange(layer.weight, "e (i j c y x) -> e c (i y) (j x)", **sides).detach().float().cpu()


def filter_spectrum(filters: Tensor) -> FilterSpectrum:
    """Spectrum, singular values and principal components of filters (E, 3, y, x), which are not centred."""
    transformed = torch.fft.fft2(filters)  # (E, 3, y, x)
    power = torch.fft.fftshift(transformed.abs().square().sum(1).mean(0))
    _, values, vectors = torch.linalg.svd(filters.flatten(1), full_matrices=False)
    return FilterSpectrum(power, values, (values[:, None] * vectors).unflatten(1, filters.shape[1:]))


def filter_figure(filters: Tensor, count: int = 64, *, columns: int = 16) -> Figure:
    """The filters of the largest norm, in its order. Grey is 0; each has a scale of its own.

    Args:
        filters: (E, 3, y, x); the components of a spectrum, too.
        count: so many of them at most.
        columns: filters in a row.
    """
    if count < 1:
        raise LitEveError(f"filter_figure: count is at least 1, not {count}")
    order = filters.flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:count]
    chosen = filters[order]
    largest = chosen.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(chosen.dtype).tiny)
    pictures = (0.5 + chosen / (2 * largest)).movedim(1, -1).numpy()  # (count, y, x, 3)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    with drawing(rows, columns, (0.55 * columns, 0.55 * rows)) as (drawn, axes):
        for axis in axes.flat:
            axis.axis("off")
        for axis, picture in zip(axes.flat, pictures, strict=False):
            axis.imshow(picture, interpolation="nearest")
    return drawn


def spectrum_figure(spectra: Mapping[str, FilterSpectrum]) -> Figure:
    """The power of each model as a map over frequencies, on one scale; behind it the singular values, a line per model.

    Args:
        spectra: of :func:`filter_spectrum`, by the name of the model.

    Raises:
        LitEveError: there is no spectrum.
    """
    if not spectra:
        raise LitEveError("there is no spectrum to draw")
    from matplotlib.colors import LogNorm

    powers = [spectrum.power for spectrum in spectra.values()]
    largest = max(float(power.max()) for power in powers)
    norm = LogNorm(max(min(float(power.min()) for power in powers), largest * 1e-6), largest)
    colours = shades(len(spectra))
    with drawing(1, len(spectra) + 1, (2.4 * len(spectra) + 3.8, 2.6)) as (picture, axes):
        for axis, (name, spectrum) in zip(axes.flat, spectra.items(), strict=False):
            rows, columns = spectrum.power.shape
            extent = (-0.5 - columns // 2, (columns - 1) // 2 + 0.5, (rows - 1) // 2 + 0.5, -0.5 - rows // 2)
            shown = axis.imshow(spectrum.power.numpy(), norm=norm, cmap="magma", extent=extent)
            axis.grid(False)
            axis.set(title=name, xlabel="cycles per filter")
        picture.colorbar(shown, ax=list(axes.flat[:-1])).ax.set_title("power")
        last = axes.flat[-1]
        for (name, spectrum), colour in zip(spectra.items(), colours, strict=True):
            last.plot(range(1, len(spectrum.singular_values) + 1), spectrum.singular_values.numpy(), color=colour, label=name)
        last.set(title="singular values", xlabel="number", ylim=(0, None))
        last.legend()
    return picture
