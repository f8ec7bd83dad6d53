"""An answer that was written, read once more in a single forward pass: what the model gives each of its tokens.

Notation: B rows, T tokens of the prompt and of the answer, A answer tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_eve.interpretation.answers import WrittenAnswer
from lit_eve.interpretation.samples import check_eval

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration


@dataclass(frozen=True)
class ForcedAnswer:
    """The prompt with its answer behind it, up to the position that predicts the last answer token."""

    input_ids: Tensor  # (1, T) int64
    positions: Tensor  # (A,) int64, those that predict the answer tokens
    targets: Tensor  # (A,) int64, the ids of the answer tokens

    @classmethod
    def of(cls, model: EveForConditionalGeneration, seen: WrittenAnswer) -> ForcedAnswer:
        """
        Raises:
            LitEveError: the model is in training mode.
        """
        check_eval(model)
        prompt, written = seen.inputs["input_ids"], seen.token_ids
        steps = torch.tensor(seen.steps, device=prompt.device)
        return cls(
            input_ids=torch.cat([prompt, written[None, : seen.steps[-1]]], 1),
            positions=prompt.shape[1] - 1 + steps,
            targets=written[steps],
        )

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Logits of the positions (B, A, V) -> what each answer token has (B, A) float32, in nats, of the whole vocabulary."""
        targets = self.targets.expand(logits.shape[:2])[..., None]  # (B, A, 1)
        return logits.float().log_softmax(-1).gather(-1, targets)[..., 0]
