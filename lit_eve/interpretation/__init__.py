"""What a model looks at and what it computes, recorded without changing the model; heat maps over its images."""

from lit_eve.interpretation.answers import AnswerAttention, attend
from lit_eve.interpretation.maps import image_maps
from lit_eve.interpretation.overlay import overlay
from lit_eve.interpretation.recording import ActivationRecorder, AttentionRecorder

__all__ = ["ActivationRecorder", "AnswerAttention", "AttentionRecorder", "attend", "image_maps", "overlay"]
