"""The ten benchmarks of the EVE papers, one declaration each: official files, prompts, metric, files for servers.

In ``own.py`` stands what reads a file of questions of one's own.
"""

from lit_eve.evaluation.benchmarks.base import Benchmark, Benchmarks, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems
from lit_eve.evaluation.benchmarks.gqa import GQA
from lit_eve.evaluation.benchmarks.mmbench import MMBench
from lit_eve.evaluation.benchmarks.mme import MME
from lit_eve.evaluation.benchmarks.mmvet import MMVet
from lit_eve.evaluation.benchmarks.pope import POPE
from lit_eve.evaluation.benchmarks.scienceqa import ScienceQA
from lit_eve.evaluation.benchmarks.seedbench import SEEDBench
from lit_eve.evaluation.benchmarks.textvqa import TextVQA
from lit_eve.evaluation.benchmarks.vizwiz import VizWiz
from lit_eve.evaluation.benchmarks.vqav2 import VQAv2

BENCHMARKS = Benchmarks()
"""By name, in the order of the papers' tables; those of your own come last, ``@BENCHMARKS.register`` adds them."""

for _kind in (VQAv2, GQA, VizWiz, ScienceQA, TextVQA, POPE, MME, MMBench, SEEDBench, MMVet):
    BENCHMARKS.register(_kind)

__all__ = ["BENCHMARKS", "Benchmark", "Benchmarks", "Problems", "Question", "Source"]
