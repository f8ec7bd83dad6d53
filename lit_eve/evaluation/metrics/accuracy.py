"""Accuracies of answers and tokens of any data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_eve.errors import LitEveError


def normalize_answer(answer: str) -> str:
    """Lower case, single blanks, no full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


class AnswerAccuracy(Metric):
    """Share of answers that are right, word for word after :func:`normalize_answer`, overall and by type of question.

    Args:
        types: the types that may occur; each has a place of its own in the states.
    """

    full_state_update = False
    correct: Tensor  # (types,) int64
    total: Tensor  # (types,) int64

    def __init__(self, types: Sequence[str]) -> None:
        super().__init__()
        self.types = list(types)
        for state in ("correct", "total"):
            self.add_state(state, torch.zeros(len(self.types), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], answers: Sequence[str], types: Sequence[str]) -> None:
        """Count answers next to the right ones.

        Raises:
            LitEveError: a type that was not declared.
        """
        for prediction, answer, kind in zip(predictions, answers, types, strict=True):
            if kind not in self.types:
                raise LitEveError(f"unknown type of question {kind!r}; declared: {', '.join(self.types)}")
            index = self.types.index(kind)
            self.total[index] += 1
            self.correct[index] += normalize_answer(prediction) == normalize_answer(answer)

    def compute(self) -> Tensor:
        """0-dim: share of right answers; nan before any update."""
        return self.correct.sum() / self.total.sum()

    def by_type(self) -> dict[str, dict[str, float | int]]:
        """``{type: {"accuracy": ..., "count": ...}}`` of the types that occurred; of all ranks only inside ``sync_context``."""
        pairs = zip(self.types, self.correct.tolist(), self.total.tolist(), strict=True)
        return {kind: {"accuracy": correct / total, "count": total} for kind, correct, total in pairs if total}


class TokenAccuracy(Metric):
    """Share of supervised tokens that the model would have written itself, and their mean loss, under teacher forcing."""

    full_state_update = False
    correct: Tensor
    total: Tensor
    loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, correct: Tensor | int, total: Tensor | int, loss: Tensor | float) -> None:
        """Add tokens: how many were right, how many there were, the sum of their losses."""
        self.correct += correct
        self.total += total
        self.loss += loss

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``loss``, 0-dim each."""
        return {"accuracy": self.correct / self.total, "loss": self.loss / self.total}
