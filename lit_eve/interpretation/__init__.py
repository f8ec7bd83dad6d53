"""What a model looks at and what it computes, recorded without changing the model; heat maps over its images."""

from lit_eve.interpretation.agreement import Agreement, compare_maps, rank_correlation
from lit_eve.interpretation.alignment import TeacherCKA, cka_figure, cosine_figure, teacher_cka, teacher_cosine
from lit_eve.interpretation.answers import AnswerAttention, WrittenAnswer, attend, attend_prompts
from lit_eve.interpretation.causal import AblatedHeads, BlankedPatches, ablate_heads, blank_patches
from lit_eve.interpretation.figures import heads_figure, maps_figure
from lit_eve.interpretation.filters import FilterSpectrum, filter_figure, filter_spectrum, patch_filters, spectrum_figure
from lit_eve.interpretation.lens import LogitLens, lens_figure, logit_lens
from lit_eve.interpretation.maps import image_maps
from lit_eve.interpretation.overlay import overlay
from lit_eve.interpretation.recording import ActivationRecorder, AttentionRecorder
from lit_eve.interpretation.rollout import gradient_rollout, rollout
from lit_eve.interpretation.statistics import (
    AttentionStatistics,
    attention_statistics,
    head_statistics_figure,
    token_statistics_figure,
)
from lit_eve.interpretation.words import WordMap, word_figure, word_maps

__all__ = [
    "AblatedHeads",
    "ActivationRecorder",
    "Agreement",
    "AnswerAttention",
    "AttentionRecorder",
    "AttentionStatistics",
    "BlankedPatches",
    "FilterSpectrum",
    "LogitLens",
    "TeacherCKA",
    "WordMap",
    "WrittenAnswer",
    "ablate_heads",
    "attend",
    "attend_prompts",
    "attention_statistics",
    "blank_patches",
    "cka_figure",
    "compare_maps",
    "cosine_figure",
    "filter_figure",
    "filter_spectrum",
    "gradient_rollout",
    "head_statistics_figure",
    "heads_figure",
    "image_maps",
    "lens_figure",
    "logit_lens",
    "maps_figure",
    "overlay",
    "patch_filters",
    "rank_correlation",
    "rollout",
    "spectrum_figure",
    "teacher_cka",
    "teacher_cosine",
    "token_statistics_figure",
    "word_figure",
    "word_maps",
]
