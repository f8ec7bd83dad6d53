"""The command as a user types it, on tasks in a local folder, where lmms-eval is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval.api.model")

from lit_eve.evaluation import answer_all
from lit_eve.evaluation.likelihood import score_answers
from tests.evaluation.lmms_eval import tasks
from tests.tiny_model import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms_eval")
    tasks.write(folder)
    return folder


def run(folder: Path, output: str, names: str, *options: str, launcher: tuple[str, ...] = ()) -> tuple[dict, dict, str]:
    """Results, samples by task and document, and what was printed."""
    command = [
        *(launcher or (sys.executable,)),
        *("-m", "lmms_eval", "--model", "lit_eve", "--model_args", f"pretrained={folder / 'model'}", "--tasks", names),
        *("--include_path", str(folder / "tasks"), "--device", "cpu", "--log_samples", "--output_path", str(folder / output)),
        *options,
    ]
    environment = os.environ | {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    found = list((folder / output).rglob("*_results.json"))
    assert len(found) == 1, printed
    samples: dict[str, dict[int, Any]] = {}
    for file in (folder / output).rglob("*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[file.stem.split("_samples_")[1]] = {row["doc_id"]: row for row in rows}
    return json.loads(found[0].read_text())["results"], samples, printed


def test_chat(folder: Path) -> None:
    results, samples, printed = run(folder, "chat", "scenes,scenes_text,scenes_rounds", "--batch_size", "4")
    queries = tasks.queries(folder)
    expected = answer_all(*make_tiny(seed=4), queries, max_new_tokens=6, progress=None)
    assert [samples["scenes"][index]["filtered_resps"] for index in range(len(queries))] == expected
    assert results["scenes"]["exact_match,none"] == pytest.approx(sum(answer == "yes" for answer in expected) / len(queries))
    assert results["scenes_rounds"]["rounds,none"] == pytest.approx(sum(1 + i % 3 for i in range(7)) / 7)
    assert set(samples) == {"scenes", "scenes_text", "scenes_rounds"}
    assert "generation_kwargs.image_aspect_ratio='original'" in printed and "answering" in printed


def test_multiple_choice(folder: Path) -> None:
    results, _, _ = run(folder, "simple", "scenes_choice", "--batch_size", "4", "--force_simple")
    queries = tasks.queries(folder)
    pairs = [(query, choice) for query in queries for choice in tasks.CHOICES]
    scores = [score.log_prob for score in score_answers(*make_tiny(seed=4), *zip(*pairs, strict=True), progress=None)]
    right = [max(range(3), key=scores[3 * i : 3 * i + 3].__getitem__) == i % 3 for i in range(len(queries))]
    assert results["scenes_choice"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder: Path) -> None:
    """Seven documents on two processes: four and three."""
    names, options = "scenes,scenes_choice", ("--batch_size", "2", "--force_simple")
    one, alone, _ = run(folder, "one", names, *options)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    two, shared, _ = run(folder, "two", names, *options, launcher=launcher)
    for name in ("scenes", "scenes_choice"):
        assert shared[name].keys() == alone[name].keys() == set(range(7))
    answers = [{i: row["filtered_resps"] for i, row in samples["scenes"].items()} for samples in (alone, shared)]
    assert answers[0] == answers[1]
    assert two["scenes_choice"]["acc,none"] == one["scenes_choice"]["acc,none"]
    assert two["scenes"]["exact_match,none"] == one["scenes"]["exact_match,none"]
