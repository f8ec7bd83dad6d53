"""The pictures of the report: loss curves, accuracy by question type, questions with what the model looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lit_eve.plotting import BLUE, FAINT, GREEN, INK, ORANGE, RED, SOFT, figure

Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def read_curves(folder: Path) -> dict[str, Curve]:
    """All scalars of a TensorBoard folder by tag; where an interrupted run logged a step again, the last value counts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    curves = {}
    for tag in events.Tags()[SCALARS]:
        # Files are read in the order of their names, which need not be the order in which they were written.
        values = {event.step: event.value for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time)}
        steps = sorted(values)
        curves[tag] = np.array(steps), np.array([values[step] for step in steps])
    return curves


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window, narrower at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), window // 2)
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def plot_losses(path: Path, stages: Mapping[str, Mapping[str, Curve]]) -> None:
    """Both losses (rows) of each stage (columns): every logged step, its running mean, and the validation loss."""
    losses = {"language_loss": ("language loss", BLUE), "alignment_loss": ("alignment loss (1 - cosine)", ORANGE)}
    shown = [loss for loss in losses if any(f"train/{loss}" in curves for curves in stages.values())]
    size = (3.1 * len(stages) + 0.4, 2.4 * len(shown) + 0.2)
    with figure(path, len(shown), len(stages), size, sharex="col", sharey="row") as axes:
        for row, loss in enumerate(shown):
            label, colour = losses[loss]
            for column, (stage, curves) in enumerate(stages.items()):
                ax = axes[row, column]
                if row == 0:
                    ax.set_title(stage)
                if f"train/{loss}" not in curves:
                    ax.text(0.5, 0.5, "not used in this stage", transform=ax.transAxes, ha="center", va="center", color=SOFT)
                    continue
                steps, values = curves[f"train/{loss}"]
                ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
                ax.plot(steps, smooth(values, max(3, len(values) // 12)), color=colour, linewidth=1.8, label="training")
                if f"val/{loss}" in curves:
                    ax.plot(
                        *curves[f"val/{loss}"],
                        color=INK,
                        linewidth=0.8,
                        linestyle=":",
                        marker="o",
                        markersize=3.5,
                        label="validation",
                    )
            axes[row, 0].set_ylim(bottom=0)
            axes[row, 0].set_ylabel(label)
            next(ax for ax in axes[row] if ax.lines).legend(loc="upper right")
        for ax in axes[-1]:
            ax.set_xlabel("optimizer step")
            ax.set_xlim(left=0)
            ax.xaxis.get_major_locator().set_params(integer=True)


def plot_accuracy(path: Path, by_type: Mapping[str, Mapping[str, float]], overall: Mapping[str, float]) -> None:
    """Bars of the model's accuracy by question type, next to both baselines.

    Args:
        by_type: ``{type: {"accuracy", "blind", "shuffled"}}``.
        overall: the same three numbers over all questions.
    """
    series = (
        ("accuracy", "model", BLUE),
        ("shuffled", "model, images of other questions", "#9DB7CC"),
        ("blind", "best guess without images", FAINT),
    )
    rows = [("all questions", overall), *sorted(by_type.items(), key=lambda item: -item[1]["accuracy"])]
    height = 0.26
    with figure(path, 1, 1, (7.2, 0.62 * len(rows) + 0.9)) as axes:
        ax = axes[0, 0]
        for offset, (key, label, colour) in enumerate(series):
            places = [row + (offset - 1) * height - 0.25 * (row == 0) for row in range(len(rows))]
            values = [numbers[key] for _, numbers in rows]
            ax.barh(places, values, height=height * 0.9, color=colour, label=label)
            for place, value in zip(places, values, strict=True):
                ax.text(
                    value + 0.008,
                    place,
                    f"{100 * value:.0f}",
                    va="center",
                    fontsize=7.5,
                    color=INK if key == "accuracy" else SOFT,
                )
        ax.set_yticks([row - 0.25 * (row == 0) for row in range(len(rows))], [name.replace("_", " ") for name, _ in rows])
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.get_yticklabels()[0].set_fontweight("bold")
        ax.set_ylim(len(rows) - 0.5, -0.75)
        ax.set_xlim(0, 1.06)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.figure.legend(loc="outside upper left", ncols=3)


@dataclass(frozen=True)
class Example:
    """A question about an image, the model's answer to it, and the heat map over the image when it answered."""

    image: Image.Image
    heat: Image.Image | None  # None where an image has no map
    type: str
    question: str
    answer: str
    expected: str
    correct: bool


def plot_examples(path: Path, examples: Sequence[Example], columns: int = 4) -> None:
    """A sheet of examples: image and heat map side by side, the question above, both answers below."""
    from textwrap import fill, shorten

    rows = -(-len(examples) // columns)
    side = max(max(example.image.size) for example in examples)
    gap = side // 16
    with figure(path, rows, columns, (2.8 * columns, 2.0 * rows)) as axes:
        axes[0, 0].figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
        for ax in axes.flat:
            ax.axis("off")
        for ax, example in zip(axes.flat, examples, strict=False):
            sheet = np.full((side, 2 * side + gap, 3), 255, np.uint8)
            pictures = [(0, example.image), (side + gap, example.heat)]
            for left, picture in pictures[: 1 if example.heat is None else 2]:
                pixels = np.asarray(picture)
                y, x = ((side - length) // 2 for length in pixels.shape[:2])
                sheet[y : y + pixels.shape[0], left + x : left + x + pixels.shape[1]] = pixels
            ax.imshow(sheet, interpolation="nearest")
            ax.set_title(fill(example.question, 38), fontsize=8, pad=4)
            colour = GREEN if example.correct else RED
            answer = shorten(example.answer or "(nothing)", 26, placeholder="…")
            answer = f"{answer}  {'✓' if example.correct else '✗'}"
            below = {"transform": ax.transAxes, "va": "top", "in_layout": False}
            ax.text(0, -0.05, answer, fontsize=8.5, color=colour, fontweight="bold", **below)
            if not example.correct:
                ax.text(1, -0.05, f"it is: {example.expected}", fontsize=8, color=SOFT, ha="right", **below)
