"""How well captions are predicted, token by token, when the words before are given (teacher forcing)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from lit_eve.data import model_inputs
from lit_eve.evaluation.metrics import TokenAccuracy
from lit_eve.models import EveForConditionalGeneration


@torch.no_grad()
def token_accuracy(
    model: EveForConditionalGeneration, batches: Collection[Mapping[str, Any]], *, progress: str | None = "captions"
) -> dict[str, float]:
    """Accuracy and mean loss over all supervised tokens.

    Args:
        model: in eval mode. Supervisions that are attached are not run.
        batches: batches as a datamodule makes them: a loader, or a list.
        progress: title of the progress bar; None: no bar.

    Returns:
        ``{"accuracy": ..., "loss": ...}``.
    """
    metric = TokenAccuracy().to(model.device)
    with model.supervised_by():
        for batch in track(batches, progress or "", disable=progress is None):
            inputs = {k: x.to(model.device) if isinstance(x, Tensor) else x for k, x in model_inputs(batch).items()}
            output = model(**inputs, num_targets=1)  # divided by 1: a sum
            metric.update(output.num_correct, len(inputs["target_positions"]), output.language_loss)
    return {name: float(value) for name, value in metric.compute().items()}
