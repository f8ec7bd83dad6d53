"""Every metric, in two real processes: the scores of one, however the questions are shared out."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch.distributed as dist

from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.metrics.base import BenchmarkMetric
from tests.evaluation.micro import best_score
from tests.two_processes import PROCESSES, in_two_processes


def case(name: str) -> tuple[BenchmarkMetric, list, list[str]]:
    """The metric of a benchmark, and the ids and answers of its golden file."""
    return import_module(f"tests.evaluation.metrics.test_{name}").case()


def share(count: int, rank: int, world: int) -> list[int]:
    """What a distributed sampler gives to a rank: it repeats the first questions until all ranks have equally many."""
    return [(rank + world * step) % count for step in range(-(-count // world))]


def score_share(folder: Path) -> None:
    """What each process does: score its share of every benchmark, and write down what it knows of the whole."""
    dist.init_process_group("gloo")
    rank, results = dist.get_rank(), {}
    for name in BENCHMARKS:
        metric, ids, answers = case(name)
        for place in share(len(ids), rank, PROCESSES):
            metric.update(ids[place : place + 1], answers[place : place + 1])
        results[name] = metric.compute()
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    """Scores by benchmark, as each of two processes has them."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(score_share, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_two_processes_score_like_one(together, name):
    metric, ids, answers = case(name)
    metric.update(ids, answers)
    alone = metric.compute()
    assert len(ids) > 10 and 0 < alone[metric.headline] < best_score(name)
    for scores in together:
        assert scores[name] == pytest.approx(alone, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_question_that_is_answered_twice_counts_once(name):
    metric, ids, answers = case(name)
    metric.update(ids, answers)
    before = metric.compute()
    metric.update(ids[:7], answers[:7])
    assert metric.compute() == pytest.approx(before, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_reset_forgets(name):
    metric, ids, answers = case(name)
    metric.update(ids, answers)
    metric.reset()
    assert metric.by_question() == {}


def test_some_number_of_questions_does_not_divide_by_the_ranks():
    assert any(len(case(name)[1]) % 2 for name in BENCHMARKS)
