from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lit_eve.errors import LitEveError
from lit_eve.evaluation import AnswerAccuracy, TokenAccuracy, normalize_answer
from tests.two_processes import in_two_processes

ANSWERS = [("2", "2", "count"), ("3", "2", "count"), ("Top  left.", "top left", "place"), ("yes", "no", "exist")]


def test_normalisation() -> None:
    assert normalize_answer(" Top\n LEFT. ") == "top left"
    assert normalize_answer("a.b") == "a.b"
    assert normalize_answer("") == ""


def test_accuracy_overall_and_by_type() -> None:
    metric = AnswerAccuracy(["exist", "count", "place", "size"])
    assert math.isnan(metric.compute())
    metric.update(*zip(*ANSWERS[:3], strict=True))
    metric.update(*zip(*ANSWERS[3:], strict=True))
    assert metric.compute() == 0.5
    assert metric.by_type() == {
        "exist": {"accuracy": 0.0, "count": 1},
        "count": {"accuracy": 0.5, "count": 2},
        "place": {"accuracy": 1.0, "count": 1},
    }
    metric.reset()
    assert metric.by_type() == {}


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(LitEveError, match="unknown type of question 'smell'; declared: count"):
        AnswerAccuracy(["count"]).update(["a"], ["a"], ["smell"])


def _rank(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    metric = AnswerAccuracy(["exist", "count", "place"])
    metric.update(*zip(*(ANSWERS[:3] if rank == 0 else ANSWERS[3:]), strict=True))  # unequal shares
    tokens = TokenAccuracy()
    tokens.update(*((3, 4, 2.0) if rank == 0 else (0, 6, 8.0)))
    result = {"answers": float(metric.compute()), "tokens": {key: float(value) for key, value in tokens.compute().items()}}
    with metric.sync_context():
        result["by_type"] = metric.by_type()
    torch.save(result, folder / f"{rank}.pt")


def test_states_add_up_over_ranks(tmp_path) -> None:
    in_two_processes(_rank, tmp_path)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result["answers"] == 0.5
        assert result["by_type"]["count"] == {"accuracy": 0.5, "count": 2} and result["by_type"]["exist"]["count"] == 1
        assert result["tokens"] == pytest.approx({"accuracy": 0.3, "loss": 1.0})


def test_token_accuracy_weighs_by_tokens() -> None:
    metric = TokenAccuracy()
    metric.update(torch.tensor(3), 4, torch.tensor(2.0))
    metric.update(torch.tensor(0), 6, torch.tensor(8.0))
    values = metric.compute()
    assert values["accuracy"] == pytest.approx(0.3) and values["loss"] == pytest.approx(1.0)
