"""Torchmetrics of answers and tokens. Their states are sums, so that ranks and batches add up."""

from lit_eve.evaluation.metrics.accuracy import AnswerAccuracy, TokenAccuracy, normalize_answer
from lit_eve.evaluation.metrics.base import BenchmarkMetric
from lit_eve.evaluation.metrics.mmbench import MMBench, MMBenchReference
from lit_eve.evaluation.metrics.mmvet import MMVet, MMVetReference
from lit_eve.evaluation.metrics.pope import POPE, POPEReference

__all__ = [
    "POPE",
    "AnswerAccuracy",
    "BenchmarkMetric",
    "MMBench",
    "MMBenchReference",
    "MMVet",
    "MMVetReference",
    "POPEReference",
    "TokenAccuracy",
    "normalize_answer",
]
