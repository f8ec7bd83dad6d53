"""The ten benchmarks of the EVE papers, one declaration each: official files, prompts, metric, files for servers."""

from lit_eve.evaluation.benchmarks.base import Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems
from lit_eve.evaluation.benchmarks.gqa import GQA
from lit_eve.evaluation.benchmarks.pope import POPE
from lit_eve.evaluation.benchmarks.scienceqa import ScienceQA
from lit_eve.evaluation.benchmarks.textvqa import TextVQA
from lit_eve.evaluation.benchmarks.vizwiz import VizWiz
from lit_eve.evaluation.benchmarks.vqav2 import VQAv2

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (VQAv2(), GQA(), VizWiz(), ScienceQA(), TextVQA(), POPE())
}
"""By name, in the order of the papers' tables."""

__all__ = ["BENCHMARKS", "Benchmark", "Problems", "Question", "Source"]
