"""What a trained model can do: answers to questions, the ten benchmarks of the EVE papers, tokens of captions.

benchmarks/   one declaration each: official files, prompts, files for servers
metrics/      one torchmetric each, equal to the official scorer
data.py       BenchmarkData: benchmarks as test or validation loaders
run.py        the folder of an evaluation: answers that survive a kill, then scores, table and plot
"""

from lit_eve.evaluation.captions import token_accuracy
from lit_eve.evaluation.data import BenchmarkData
from lit_eve.evaluation.generation import Query, answer_all
from lit_eve.evaluation.judge import OpenAIJudge
from lit_eve.evaluation.metrics import AnswerAccuracy, TokenAccuracy, normalize_answer

__all__ = [
    "AnswerAccuracy",
    "BenchmarkData",
    "OpenAIJudge",
    "Query",
    "TokenAccuracy",
    "answer_all",
    "normalize_answer",
    "token_accuracy",
]
