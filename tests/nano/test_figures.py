from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from lit_eve.nano.figures import Example, plot_accuracy, plot_examples, plot_losses, read_curves, smooth


def test_curves_of_an_interrupted_run(tmp_path: Path) -> None:
    for values in ({1: 5.0, 2: 4.0, 3: 9.0}, {3: 3.0, 4: 2.0}):  # step 3 was logged by a run that was killed
        writer = SummaryWriter(tmp_path, filename_suffix=str(len(values)))
        for step, value in values.items():
            writer.add_scalar("train/language_loss", value, step)
        writer.close()
    steps, values = read_curves(tmp_path)["train/language_loss"]
    assert steps.tolist() == [1, 2, 3, 4] and values.tolist() == [5, 4, 3, 2]


def test_smoothing() -> None:
    line = np.arange(10.0)
    assert smooth(line, 5) == pytest.approx(line)  # nothing is shifted, not even at the ends
    assert smooth(np.array([0.0, 3, 0, 3, 0]), 3) == pytest.approx([0, 1, 2, 1, 0])
    assert smooth(np.array([2.0]), 7) == pytest.approx([2])


COLOUR = (200, 0, 90)


def test_pictures_are_drawn_also_when_little_is_there(tmp_path: Path) -> None:
    curve = np.array([1]), np.array([0.5])
    plot_losses(tmp_path / "one.png", {"stage 1": {"train/language_loss": curve}})
    plot_losses(
        tmp_path / "some.png", {"stage 1": {"train/alignment_loss": curve, "train/language_loss": curve}, "stage 2": {}}
    )
    plot_accuracy(tmp_path / "bars.png", {}, {"accuracy": 1.0, "blind": 0.0, "shuffled": 0.5})
    image = Image.new("RGB", (64, 32), COLOUR)
    plot_examples(
        tmp_path / "sheet.png", [Example(image, image, "size", "how large is it? " * 4, "large " * 20, "small", False)]
    )
    plot_examples(tmp_path / "no_map.png", [Example(image, None, "size", "how large is it?", "small", "small", True)])
    of_colour = {
        name: int((np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) == COLOUR).all(2).sum())
        for name in ("sheet", "no_map")
    }
    assert of_colour["sheet"] == pytest.approx(2 * of_colour["no_map"], rel=0.1) and of_colour["no_map"] > 500
    assert all(Image.open(tmp_path / f"{name}.png").width > 300 for name in ("one", "some", "bars", "sheet"))
