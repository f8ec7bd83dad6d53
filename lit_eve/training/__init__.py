"""Training on PyTorch Lightning: LitEve, stages, optimizer, FSDP2, callbacks and the command line."""

from lit_eve.training.fsdp import FSDP2Strategy
from lit_eve.training.module import LitEve
from lit_eve.training.stages import STAGES, Lora, Rule, Stage

__all__ = ["STAGES", "FSDP2Strategy", "LitEve", "Lora", "Rule", "Stage"]
