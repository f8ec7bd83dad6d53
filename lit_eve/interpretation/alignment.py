"""How near a model's image tokens are to the teacher's patch features: through the aligner, and without it.

    teacher_cosine    cosine between the aligner's prediction and the teacher: what the alignment loss is made of
    teacher_cka       linear CKA between each hidden state and the teacher     Kornblith et al. 2019, arXiv 1905.00414

Notation: N images, M teacher patches inside the images, S hidden states, D decoder width, K teacher width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eve.errors import LitEveError, SampleError
from lit_eve.interpretation.maps import on_grids
from lit_eve.interpretation.overlay import picture_below
from lit_eve.interpretation.recording.intercept import indices
from lit_eve.interpretation.samples import check_eval, check_images, check_whole, each_usable
from lit_eve.models.decoders import blocks_of
from lit_eve.models.splice import ImageLayout, TeacherCells
from lit_eve.plotting import SOFT, drawing, shades
from lit_eve.processing import Sample, load_image
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class TeacherCKA:
    """Linear CKA between hidden states at image tokens and the teacher's features, over the teacher patches of many images."""

    states: list[int]
    """The S hidden states: 0 the embeddings, i what block i - 1 returns, the last one behind the final norm."""
    cka: Tensor
    """(S,) float64 in 0..1."""
    chance: Tensor
    """(S,) float64: the mean CKA of teacher's features dealt out to the patches at random: less with more patches."""
    patches: int
    """M"""
    skipped: list[str]
    """Why samples could not be used."""


def teacher_cosine(model: EveForConditionalGeneration, processor: EveProcessor, images: Sequence[ImageSource]) -> list[Tensor]:
    """Cosine similarity between the aligner's prediction and the teacher, as a map over each image.

    Args:
        model: with its teacher and trained aligner: ``lit_eve.load(path, teacher=True)``. What an
            aligner predicts that was never trained says nothing.
        images: one after another; each knows those before it.

    Returns:
        N maps (rows, columns) float32 of teacher patches. 1 minus its mean is the image's alignment loss.

    Raises:
        LitEveError: there is no image, the geometry does not show a photo whole, or the model has no teacher or is in training
            mode.
    """
    check_images("teacher_cosine", images)
    images = [load_image(image) for image in images]
    check_whole(model.geometry, images)
    sample = Sample("images", [{"role": "user", "content": [{"type": "image"}] * len(images)}], images)
    inputs = _encode(model, processor, sample)
    seen = _beside_the_teacher(model, inputs)
    cosine = F.cosine_similarity(seen.predictions.float(), seen.targets.float(), dim=-1)  # (M,)
    return on_grids(cosine.cpu(), model.teacher.grid.grid_of(inputs["image_grid_hw"], model.geometry))


def teacher_cka(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    samples: Sequence[Sample],
    *,
    states: Sequence[int] | None = None,
    progress: str | None = "reading",
) -> TeacherCKA:
    """Linear CKA between hidden states and the teacher; no aligner has a part in it.

    Holds a D x D matrix in float64 per state on the model's device: 5 GB for all of EVE-7B's.

    Args:
        model: with a teacher: ``lit_eve.load(path, teacher=True)``, or a folder as ``teacher``.
        samples: with images, read whole as in training (``lit_eve.data.read_samples``).
        states: hidden states, 0 the embeddings, negative ones from the end; None: all.
        progress: title of the progress bar; None: no bar.

    Raises:
        LitEveError: the model has no teacher or is in training mode, no sample can be used, there is no such state, or one is
            the same everywhere.
    """
    chosen = indices(states, len(blocks_of(model.get_decoder())) + 1, "hidden state")
    total: dict[tuple[str, int], Tensor | float] = defaultdict(float)  # sums of features and of their products
    count, skipped = 0, list[str]()
    for inputs in each_usable(samples, lambda sample: _encode(model, processor, sample), skipped, progress):
        seen = _beside_the_teacher(model, inputs)
        target = seen.targets.double()  # (M, K)
        count += len(target)
        total["y", 0] += target.sum(0)
        total["yy", 0] += target.T @ target
        for state in chosen:
            hidden = seen.hidden[state].double()  # (M, D)
            total["x", state] += hidden.sum(0)
            total["xx", state] += hidden.T @ hidden
            total["xy", state] += hidden.T @ target
    if count < 2:
        raise LitEveError(f"no sample can be used: {skipped[0] if skipped else 'there is none'}")
    centred = lambda product, left, right: product - left[:, None] * right / count  # noqa: E731
    teacher = centred(total["yy", 0], total["y", 0], total["y", 0])  # (K, K)
    cka, chance = [], []
    for state in chosen:
        own = centred(total["xx", state], total["x", state], total["x", state])  # (D, D)
        across = centred(total["xy", state], total["x", state], total["y", 0])  # (D, K)
        scale = own.norm() * teacher.norm()
        if not scale > 1e-12 * total["xx", state].norm() * total["yy", 0].norm():
            raise LitEveError(f"hidden state {state} or the teacher is the same at all {count} patches: there is no CKA of it")
        cka.append(across.square().sum() / scale)
        chance.append(own.trace() * teacher.trace() / (count - 1) / scale)
    return TeacherCKA(chosen, torch.stack(cka).cpu(), torch.stack(chance).cpu(), count, skipped)


@dataclass(frozen=True)
class _Seen:
    predictions: Tensor  # (M, K) of the aligner
    targets: Tensor  # (M, K) of the teacher
    hidden: list[Tensor]  # (M, D) for each hidden state, the mean over the image tokens of a teacher patch


def _encode(model: EveForConditionalGeneration, processor: EveProcessor, sample: Sample) -> dict[str, Tensor]:
    if not sample.images:
        raise SampleError(f"{sample.key}: the sample has no image")
    if model.teacher is None:
        raise LitEveError("the model has no teacher: lit_eve.load(path, teacher=True) attaches it, with the trained aligner")
    if model.aligner is None:
        raise LitEveError("the model has no aligner: it was supervised without patch_alignment")
    encoded = processor.encode_sample(sample, with_labels=False, teacher=model.teacher.grid)
    encoded["input_ids"] = encoded["input_ids"][None]
    return {key: value.to(model.device) for key, value in encoded.items()}


@torch.no_grad()
def _beside_the_teacher(model: EveForConditionalGeneration, inputs: Mapping[str, Tensor]) -> _Seen:
    """One forward as in training, and what aligner and teacher return in it.

    Args:
        inputs: of ``forward``, with ``teacher_pixel_values``; packed rows too.
    """
    check_eval(model)
    returned: dict[str, Tensor] = {}
    handles = [
        part.register_forward_hook(lambda _module, _inputs, output, name=name: returned.update({name: output}))
        for name, part in (("aligner", model.aligner), ("teacher", model.teacher))
    ]
    nothing = torch.full_like(inputs["input_ids"], -100)  # labels, without which the aligner does not run
    try:
        with model.supervised_by("aligner"):
            hidden = model(**{**inputs, "labels": nothing}, output_hidden_states=True).hidden_states
    finally:
        for handle in handles:
            handle.remove()
    place = inputs["image_grid_hw"], len(inputs["pixel_values"]), model.geometry, model.config.image_token_id
    layout = ImageLayout.of(inputs["input_ids"], *place)
    cells = TeacherCells.of(layout, inputs["image_grid_hw"], model.geometry, model.teacher.grid)
    target = returned["teacher"]
    if not isinstance(target, Tensor):  # another supervision looks at all its hidden states
        target = target[-1]
    return _Seen(
        returned["aligner"],
        target.flatten(0, 1)[cells.teacher_index],
        [state.flatten(0, 1)[cells.positions].mean(1) for state in hidden],
    )


def cosine_figure(images: Sequence[ImageSource], maps: Mapping[str, Sequence[Tensor]], image: int = 0) -> Figure:
    """The image, and a map of cosines over it for each model, on one scale; their mean in the title.

    Args:
        images: what the models saw.
        maps: of :func:`teacher_cosine`, by the name of the model.
        image: which of the images.

    Raises:
        LitEveError: there is no map, or no such image.
    """
    if not maps:
        raise LitEveError("there is no map to draw")
    picture, image = picture_below(images, image, maps)
    width, height = (2.2 * side / max(picture.size) for side in picture.size)
    lowest = min(float(ones[image].min()) for ones in maps.values())
    with drawing(1, len(maps) + 1, ((len(maps) + 1) * max(width, 1.2) + 0.8, height + 0.6)) as (drawn, axes):
        for axis, name in zip(axes.flat, ("image", *maps), strict=True):
            axis.axis("off")
            axis.set_title(name, color=SOFT, loc="center")
            axis.imshow(picture if name == "image" else picture.convert("L"), cmap="gray", vmin=0, vmax=255)
        extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
        for axis, (name, ones) in zip(axes.flat[1:], maps.items(), strict=True):
            values = ones[image]
            shown = axis.imshow(values.numpy(), cmap="inferno", vmin=min(0, lowest), vmax=1, alpha=0.75, extent=extent)
            axis.set_title(f"{name}\n{values.mean():.2f}", color=SOFT, loc="center")
        drawn.colorbar(shown, ax=list(axes.flat), label="cosine with the teacher")
    return drawn


def cka_figure(curves: Mapping[str, TeacherCKA]) -> Figure:
    """CKA over the hidden states, a line per model; dotted, what is to be expected by chance.

    Args:
        curves: of :func:`teacher_cka`, by the name of the model.

    Raises:
        LitEveError: there is no curve.
    """
    if not curves:
        raise LitEveError("there is no curve to draw")
    colours = shades(len(curves))
    with drawing(1, 1, (5.5, 3.2)) as (picture, axes):
        (axis,) = axes.flat
        for (name, curve), colour in zip(curves.items(), colours, strict=True):
            axis.plot(curve.states, curve.cka.numpy(), marker="o", color=colour, label=name)
            axis.plot(curve.states, curve.chance.numpy(), ls=":", color=colour)
        axis.plot([], [], ls=":", color=SOFT, label="by chance")
        axis.set(xlabel="hidden state (0: the embeddings)", ylabel="linear CKA with the teacher", ylim=(0, 1))
        axis.xaxis.get_major_locator().set_params(integer=True)
        picture.legend(loc="outside right upper")
    return picture
