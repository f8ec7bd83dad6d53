"""The miniature EVE at its shipped size, trained from nothing: what it does on its own questions and on the ten benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lit_eve
from lit_eve.cli import main
from lit_eve.evaluation import answer_all
from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.metrics.mmbench import NOTHING_FITS
from lit_eve.nano.evaluate import MAX_NEW_TOKENS
from tests.evaluation.micro import lines_of
from tests.evaluation.stub_judge import stub_server

GAIN = dict.fromkeys(BENCHMARKS, 20) | {"scienceqa": 15, "mme": 200}  # points over the same model without images
GAIN["pope"] = 10  # without images a model may say yes to everything, which is an F1 of 67


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_trained_miniature_sees(tmp_path, subtests):
    """One test, as one training takes minutes."""
    assert main(["nano", "--output", str(tmp_path)]) == 0
    with subtests.test("questions about unseen scenes"):
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["question_accuracy"] > 0.75 > 0.35 > max(metrics["blind_accuracy"], metrics["shuffled_accuracy"])
        assert metrics["caption_accuracy"] > 0.92
        accuracy = {type: row["accuracy"] for type, row in metrics["by_type"].items()}
        assert min(accuracy[type] for type in ("colour", "shape", "size")) > 0.95, accuracy
        assert min(accuracy[type] for type in ("exist", "count")) > 0.88, accuracy
    results = evaluate(tmp_path)
    assert results.keys() == BENCHMARKS.keys()
    for name, gain in GAIN.items():
        with subtests.test(name):
            blind = score_without_images(tmp_path, name, results[name]["task"].partition(":")[2] or None)
            assert results[name]["score"] > blind + gain, f"{results[name]['score']:.1f}, without images {blind:.1f}"
    with subtests.test("answers are short"):
        for file in (tmp_path / "ten/predictions").glob("*.jsonl"):
            assert all(len(row["text"].split()) <= 4 for row in lines_of(file)), file.name


def evaluate(run: Path) -> dict[str, dict]:
    """Results of ``lit-eve evaluate`` by benchmark; a strict judge grades MM-Vet: the very words, or nothing."""

    def reply(request: dict) -> str:
        message = request["messages"][0]["content"]
        if "digit 1" in message:  # whether it is there
            return "1"
        if " | " not in message.splitlines()[-1]:  # which option of MMBench is meant by words that are none of them
            return NOTHING_FITS
        _, right, answer, *_ = message.splitlines()[-1].split(" | ")
        wanted = {text.strip().lower() for part in right.split("<AND>") for text in part.split("<OR>")}
        return str(float(answer.strip().lower() in wanted))

    with stub_server(reply) as server:
        command = ["--model", str(run / "model"), "--data", str(run / "benchmarks"), "--output", str(run / "ten")]
        assert main(["evaluate", *command, "--judge-url", server.url, "--accelerator", "cpu", "--devices", "1"]) == 0
    return {row["benchmark"]: row for row in json.loads((run / "ten/results.json").read_text())["results"]}


def score_without_images(run: Path, name: str, split: str | None) -> float:
    """The headline score of the same model, given the prompts alone."""
    benchmark = BENCHMARKS[name]
    questions = benchmark.questions(run / "benchmarks" / name, split)
    queries = [([], question.prompt) for question in questions]
    said = answer_all(*lit_eve.load(run / "model"), queries, batch_size=64, max_new_tokens=MAX_NEW_TOKENS, progress=None)
    if name == "mmvet":
        right = [question.reference.answer.lower() for question in questions]
        said = [str(float(text.lower() == wanted)) for text, wanted in zip(said, right, strict=True)]
    metric = benchmark.metric(questions)
    metric.update([question.id for question in questions], said)
    return metric.compute()[metric.headline]
