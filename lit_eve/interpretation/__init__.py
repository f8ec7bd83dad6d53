"""What a model looks at: attention recorded without changing the model, and heat maps over its images."""

from lit_eve.interpretation.overlay import AnswerAttention, attend, image_maps, overlay
from lit_eve.interpretation.recorder import AttentionRecorder

__all__ = ["AnswerAttention", "AttentionRecorder", "attend", "image_maps", "overlay"]
