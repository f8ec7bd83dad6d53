"""How much heads look at images, and how widely, over many answers.

Notation: S samples, A tokens of the longest answer, L recorded layers, h recorded heads, K tokens that can be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_eve.errors import LitEveError, SampleError
from lit_eve.interpretation.answers import attend_prompts
from lit_eve.interpretation.samples import each_usable
from lit_eve.models.generation.asking import ask
from lit_eve.plotting import FAINT, INK, SOFT, drawing
from lit_eve.processing import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class AttentionStatistics:
    """Attention of many answers, at the positions that predict their tokens; NaN behind the end of an answer."""

    image_share: Tensor
    """(S, A, L, h) float32: the part of the attention that falls on slots of images."""
    entropy: Tensor
    """(S, A, L, h) float32 in nats."""
    tokens: Tensor
    """(S, A) float32: the K tokens that can be looked at, prompt and answer so far."""
    image_slots: Tensor
    """(S,) int64: how many of them are slots of images."""
    layers: list[int]
    """The L recorded layers, from 0."""
    heads: list[int]
    """The h recorded heads, from 0."""
    skipped: list[str]
    """Why samples could not be used."""

    @property
    def uniform_share(self) -> Tensor:
        """(S, A): the share of a head that looks at all tokens alike. It falls as the answer grows, whatever the model does."""
        return self.image_slots[:, None] / self.tokens

    @property
    def relative_entropy(self) -> Tensor:
        """(S, A, L, h): the entropy divided by log K: 0 where a head looks at one token, 1 where it looks at all alike."""
        return self.entropy / self.tokens.log()[..., None, None]


def attention_statistics(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    samples: Sequence[Sample],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    max_new_tokens: int = 32,
    progress: str | None = "answering",
) -> AttentionStatistics:
    """Let the model answer the question of each sample greedily, and record where its heads look.

    Args:
        samples: with images; of each, what comes before its first answer is asked (``lit_eve.data.read_samples``).
        layers, heads: recorded; negative ones from the end; None: all.
        max_new_tokens: the longest answer.
        progress: title of the progress bar; None: no bar.

    Raises:
        LitEveError: no sample can be used, or there is no such layer or head.
    """

    def encode(sample: Sample) -> dict[str, Tensor]:
        (question,), prompt = ask([sample], processor)
        if question.fault or not question.images:
            raise SampleError(question.fault or f"{sample.key}: the question has no image")
        return {key: value.to(model.device) for key, value in prompt.items()}

    skipped: list[str] = []
    shares, entropies, tokens, slots = [], [], [], []
    for inputs in each_usable(samples, encode, skipped, progress):
        (answer,) = attend_prompts(model, processor, inputs, layers, heads, "mean", max_new_tokens)
        shares.append(answer.image_share.cpu())
        entropies.append(answer.entropy.cpu())
        tokens.append(inputs["input_ids"].shape[1] + torch.tensor(answer.steps).float())
        slots.append((inputs["input_ids"] == model.config.image_token_id).sum().cpu())
    if not shares:
        raise LitEveError(f"no sample can be used: {skipped[0] if skipped else 'there is none'}")
    pad = lambda rows: pad_sequence(rows, batch_first=True, padding_value=torch.nan)  # noqa: E731
    return AttentionStatistics(
        pad(shares), pad(entropies), pad(tokens), torch.stack(slots), answer.layers, answer.heads, skipped
    )


def head_statistics_figure(statistics: AttentionStatistics) -> Figure:
    """Two heat maps, layers x heads: share of the images and relative entropy, the mean over all tokens of all answers.

    The first layer is at the bottom.
    """
    uniform = statistics.uniform_share.nanmean()
    maps = {
        f"attention on images (all alike: {uniform:.0%})": statistics.image_share,
        "entropy / log of the number of tokens": statistics.relative_entropy,
    }
    rows, columns = len(statistics.layers), len(statistics.heads)
    with drawing(1, 2, (2 * max(3.6, 0.22 * columns + 1.4), max(2.2, 0.22 * rows + 1.2))) as (picture, axes):
        for axis, (title, values) in zip(axes.flat, maps.items(), strict=True):
            shown = axis.imshow(values.nanmean((0, 1)).numpy(), cmap="viridis", vmin=0, aspect="auto", origin="lower")
            axis.grid(False)
            axis.set(title=title, xlabel="head", ylabel="layer")
            for set_ticks, names in ((axis.set_xticks, statistics.heads), (axis.set_yticks, statistics.layers)):
                step = -(-len(names) // 16)
                set_ticks(range(0, len(names), step), names[::step])
            picture.colorbar(shown, ax=axis)
    return picture


def token_statistics_figure(statistics: AttentionStatistics) -> Figure:
    """The share of the images over the tokens of an answer: a line per layer, their mean, and that of a head that looks at
    all tokens alike. Below, how many answers are so long: where few are, the lines are those of a few long answers.
    """
    from matplotlib import colormaps

    share = statistics.image_share.mean(-1)  # (S, A, L)
    count = share[..., 0].isfinite().sum(0)  # (A,)
    mean = share.mean(-1)  # (S, A)
    variance = (mean - mean.nanmean(0)).square().nansum(0) / (count - 1).clamp(min=1)  # (A,)
    centre, margin = mean.nanmean(0).numpy(), (1.96 * (variance / count).sqrt()).numpy()  # (A,) each
    place = range(1, len(count) + 1)
    with drawing(2, 1, (6, 4), sharex=True, height_ratios=(4, 1)) as (picture, axes):
        upper, lower = axes.flat
        colours = colormaps["viridis"].resampled(len(statistics.layers) + 1)
        for index, (layer, line) in enumerate(zip(statistics.layers, share.nanmean(0).T.numpy(), strict=True)):
            named = index % -(-len(statistics.layers) // 8) == 0
            upper.plot(place, line, color=colours(index), lw=1, marker=".", label=f"layer {layer}" if named else None)
        upper.fill_between(place, centre - margin, centre + margin, color=INK, alpha=0.15, lw=0)
        upper.plot(place, centre, color=INK, lw=2, marker=".", label="mean of layers (95 %)")
        upper.plot(place, statistics.uniform_share.nanmean(0).numpy(), color=SOFT, ls="--", label="all tokens alike")
        upper.set(title="attention on images", ylim=(0, None))
        upper.yaxis.set_major_formatter("{x:.0%}")
        picture.legend(loc="outside right upper")
        lower.bar(place, count.numpy(), color=FAINT)
        lower.set(xlabel="token of the answer", ylabel="answers")
        lower.xaxis.get_major_locator().set_params(integer=True)
    return picture
