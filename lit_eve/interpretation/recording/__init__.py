"""What a model computes, recorded while it runs as it always does: attention, hidden states, what each block adds."""

from lit_eve.interpretation.recording.activations import SITES, ActivationRecorder
from lit_eve.interpretation.recording.attention import AttentionRecorder

__all__ = ["SITES", "ActivationRecorder", "AttentionRecorder"]
