"""All ten benchmarks on the way from official files to the table, with the miniatures of the nano world."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openpyxl
import pytest

from lit_eve.cli import main
from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.nano.world.benchmarks import write_benchmarks
from tests.evaluation.micro import best_score, lines_of, make_model
from tests.evaluation.stub_judge import stub_server


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Folder with ``data`` and ``model``."""
    folder = tmp_path_factory.mktemp("ten")
    write_benchmarks(folder / "data", questions=10)
    make_model(folder / "model")
    return folder


def evaluate(given: Path, output: Path, *more: str) -> dict[str, dict]:
    """Results by name of the task."""
    fixed = ["--max-new-tokens", "4", "--num-workers", "0", "--accelerator", "cpu", "--devices", "1"]
    model = [] if "--answers" in more else ["--model", str(given / "model")]
    assert main(["evaluate", *model, "--data", str(given / "data"), "--output", str(output), *fixed, *more]) == 0
    return {result["task"]: result for result in json.loads((output / "results.json").read_text())["results"]}


@pytest.fixture(scope="module")
def run(given) -> Path:
    evaluate(given, given / "run")
    return given / "run"


def test_all_ten_are_asked_scored_and_shown(run):
    results = json.loads((run / "results.json").read_text())["results"]
    assert [result["benchmark"] for result in results] == list(BENCHMARKS)
    for result in results:
        assert result["answered"] == result["asked"] >= 9 and not result["problems"]
        assert (result["score"] is None) == (result["benchmark"] == "mmvet")
        assert len(lines_of(run / "predictions" / f"{result['task'].replace(':', '-')}.jsonl")) == result["asked"]
    assert (run / "radar.png").exists()
    assert "needs a judge" in (run / "results.md").read_text()


def right_answers(given: Path, folder: Path) -> Path:
    """Answer files of a model that knows everything."""
    folder.mkdir()
    data = given / "data"
    for benchmark in BENCHMARKS.values():
        split = next(split for split in benchmark.splits if split not in benchmark.unanswered)
        name = benchmark.name if len(benchmark.splits) == 1 else f"{benchmark.name}-{split}"
        rows = [
            {"question_id": question.id, "prompt": question.prompt, **question.fields, "text": right(benchmark.name, question)}
            for question in benchmark.questions(data / benchmark.name, split)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def right(benchmark: str, question) -> str:
    reference = question.reference
    if benchmark in ("vqav2", "vizwiz", "textvqa"):
        answers = reference if isinstance(reference, tuple) and isinstance(reference[0], str) else reference.answers
        return max(answers, key=list(answers).count)
    if benchmark == "scienceqa":
        return "ABCDE"[reference.answer]
    if benchmark in ("pope", "mme"):
        return reference.label.capitalize()
    return reference.answer


def test_right_answers_get_the_best_scores(given):
    answers = right_answers(given, given / "right")
    results = evaluate(given, given / "perfect", "--answers", str(answers))
    for result in results.values():
        best = best_score(result["benchmark"])
        if result["benchmark"] in ("vqav2", "vizwiz", "textvqa"):  # people do not always agree
            assert 0.8 * best < result["score"] <= best, result["task"]
        elif result["benchmark"] != "mmvet":
            assert result["score"] == pytest.approx(best), result["task"]


def test_files_for_servers_and_tools(run, given):
    files = {path.relative_to(run / "submissions").as_posix() for path in (run / "submissions").rglob("*.*")}
    assert {"vqav2-val/vqav2.json", "vizwiz-val/vizwiz.json", "mmbench-dev/mmbench.xlsx", "mmvet/mmvet.json"} <= files
    sheet = openpyxl.load_workbook(run / "submissions/mmbench-dev/mmbench.xlsx").active
    header, *rows = sheet.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    said = {row["question_id"]: row["text"] for row in lines_of(run / "predictions/mmbench-dev.jsonl")}
    assert {row[0]: row[6] or "" for row in rows} == said
    listed = {line.split(":")[0]: line for line in (run / "results.md").read_text().splitlines() if "](submissions/" in line}
    assert "mmbench.opencompass.org.cn" in listed["- MMBench"] and "it wants all 4,377 questions" in listed["- MMBench"]
    assert "EvalAI" not in listed["- VQAv2 val"] and listed["- GQA"].endswith(")")  # for nobody; for a tool
    results = json.loads((run / "submissions/mmvet/mmvet.json").read_text())
    assert results.keys() == json.loads((given / "data/mmvet/mm-vet.json").read_text()).keys()


def test_splits_that_only_a_server_scores(given, tmp_path):
    results = evaluate(given, tmp_path / "run", "--benchmarks", "vqav2:test-dev,vizwiz:test")
    for task, ids in (("vqav2:test-dev", "question_id"), ("vizwiz:test", "image")):
        result = results[task]
        assert result["score"] is None and "EvalAI" in " ".join(result["notes"])
        rows = json.loads((tmp_path / "run" / result["submission"][0]).read_text())
        assert len({row[ids] for row in rows}) == len(rows) >= result["asked"]
        assert all(row.keys() == {ids, "answer"} for row in rows)
        official = BENCHMARKS[result["benchmark"]].sizes[task.partition(":")[2]]
        assert any(f"not scored: the server wants all {official:,} questions" in note for note in result["notes"])


def test_files_that_are_whole_are_to_be_handed_in(given, tmp_path, monkeypatch):
    vizwiz = BENCHMARKS["vizwiz"]
    count = len(vizwiz.questions(given / "data/vizwiz", "test"))
    monkeypatch.setattr(type(vizwiz), "sizes", {"test": count})
    for limit, wanted in ((count, "to be handed in: EvalAI"), (count - 1, f"the server wants all {count} questions: EvalAI")):
        result = evaluate(given, tmp_path / f"{limit}", "--benchmarks", "vizwiz:test", "--limit", str(limit))["vizwiz:test"]
        assert any(wanted in note for note in result["notes"])
        text = (tmp_path / f"{limit}/results.md").read_text()
        assert ("it wants all" in text) == (limit < count)


def test_mmvet_is_graded_by_a_judge_whose_replies_are_kept(given, tmp_path, run):
    def reply(request: dict) -> str:
        line = request["messages"][0]["content"].splitlines()[-1]
        return "1" if "Reply" in line else f"0.{len(line) % 10}"

    with stub_server(reply) as server:
        judged = [
            "--benchmarks",
            "mmvet",
            "--answers",
            str(run / "predictions"),
            "--judge-url",
            server.url,
            "--judge-runs",
            "2",
        ]
        result = evaluate(given, tmp_path / "run", *judged)["mmvet"]
        grades = [json.loads(line)["reply"] for line in (tmp_path / "run/judge.jsonl").read_text().splitlines()]
        assert len(grades) >= 2 * result["answered"] and len(set(grades)) > 1
        assert result["score"] == pytest.approx(100 * sum(map(float, grades)) / len(grades))
        assert result["scores"]["run/2"] == pytest.approx(result["score"])
        assert result["notes"][-2:] == ["judged by gpt-4-0613", "mean of 2 runs of the judge"]
        asked = len(server.requests)
        again = evaluate(given, tmp_path / "run", *judged)["mmvet"]
        assert len(server.requests) == asked + 1  # whether it is there at all
    assert again == result
    assert re.search(r"\*\*predictions \(a world of shapes\)\*\* \| \*\*\d+\.\d\*\*", (tmp_path / "run/results.md").read_text())


def test_a_judge_that_does_not_answer_is_told_before_the_work(given, tmp_path, capsys):
    with stub_server(lambda request: "1") as server:
        url = server.url
    command = ["evaluate", "--model", str(given / "model"), "--data", str(given / "data"), "--output", str(tmp_path / "run")]
    assert main([*command, "--judge-url", url]) == 2
    assert f"no judge answers at {url}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
