"""Training on PyTorch Lightning: LitEve, stages, optimizer, callbacks and the command line."""

from lit_eve.training.module import LitEve
from lit_eve.training.stages import STAGES, Rule, Stage

__all__ = ["STAGES", "LitEve", "Rule", "Stage"]
