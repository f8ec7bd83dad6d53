"""Torchmetrics of answers and tokens. Their states are sums, so that ranks and batches add up."""

from lit_eve.evaluation.metrics.accuracy import AnswerAccuracy, TokenAccuracy, normalize_answer
from lit_eve.evaluation.metrics.base import BenchmarkMetric
from lit_eve.evaluation.metrics.mme import MME, MMEReference
from lit_eve.evaluation.metrics.pope import POPE, POPEReference
from lit_eve.evaluation.metrics.seedbench import SEEDBench, SEEDBenchReference
from lit_eve.evaluation.metrics.textvqa import TextVQA
from lit_eve.evaluation.metrics.vizwiz import VizWiz, VizWizReference, answerability
from lit_eve.evaluation.metrics.vqav2 import VQAv2, VQAv2Reference

__all__ = [
    "MME",
    "POPE",
    "SEEDBench",
    "SEEDBenchReference",
    "MMEReference",
    "AnswerAccuracy",
    "BenchmarkMetric",
    "POPEReference",
    "TextVQA",
    "TokenAccuracy",
    "VQAv2",
    "VQAv2Reference",
    "VizWiz",
    "VizWizReference",
    "answerability",
    "normalize_answer",
]
