"""Torchmetrics of answers and tokens. Their states are sums, so that ranks and batches add up."""

from lit_eve.evaluation.metrics.accuracy import AnswerAccuracy, TokenAccuracy, normalize_answer
from lit_eve.evaluation.metrics.base import BenchmarkMetric
from lit_eve.evaluation.metrics.gqa import GQA, GQAReference, gqa_prediction
from lit_eve.evaluation.metrics.mmbench import MMBench, MMBenchReference
from lit_eve.evaluation.metrics.mme import MME, MMEReference
from lit_eve.evaluation.metrics.mmvet import MMVet, MMVetReference
from lit_eve.evaluation.metrics.pope import POPE, POPEReference
from lit_eve.evaluation.metrics.scienceqa import ScienceQA, ScienceQAReference, option_index, option_letter
from lit_eve.evaluation.metrics.seedbench import SEEDBench, SEEDBenchReference
from lit_eve.evaluation.metrics.textvqa import TextVQA
from lit_eve.evaluation.metrics.vizwiz import VizWiz, VizWizReference
from lit_eve.evaluation.metrics.vqav2 import VQAv2, VQAv2Reference

__all__ = [
    "AnswerAccuracy",
    "BenchmarkMetric",
    "GQA",
    "GQAReference",
    "MMBench",
    "MMBenchReference",
    "MME",
    "MMEReference",
    "MMVet",
    "MMVetReference",
    "POPE",
    "POPEReference",
    "SEEDBench",
    "SEEDBenchReference",
    "ScienceQA",
    "ScienceQAReference",
    "TextVQA",
    "TokenAccuracy",
    "VQAv2",
    "VQAv2Reference",
    "VizWiz",
    "VizWizReference",
    "gqa_prediction",
    "normalize_answer",
    "option_index",
    "option_letter",
]
