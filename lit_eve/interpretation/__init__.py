"""What a model looks at and what it computes, recorded without changing the model; heat maps over its images."""

from lit_eve.interpretation.answers import AnswerAttention, attend
from lit_eve.interpretation.causal import AblatedHeads, BlankedPatches, ablate_heads, blank_patches
from lit_eve.interpretation.figures import heads_figure, maps_figure
from lit_eve.interpretation.maps import image_maps
from lit_eve.interpretation.overlay import overlay
from lit_eve.interpretation.recording import ActivationRecorder, AttentionRecorder
from lit_eve.interpretation.rollout import gradient_rollout, rollout

__all__ = [
    "AblatedHeads",
    "ActivationRecorder",
    "AnswerAttention",
    "AttentionRecorder",
    "BlankedPatches",
    "ablate_heads",
    "attend",
    "blank_patches",
    "gradient_rollout",
    "heads_figure",
    "image_maps",
    "maps_figure",
    "overlay",
    "rollout",
]
