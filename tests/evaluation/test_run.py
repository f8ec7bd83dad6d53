"""From official files to the table, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.multiprocessing import ProcessExitedException

import lit_eve
from lit_eve.cli import main
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation import BenchmarkData, answer_all, callbacks
from lit_eve.evaluation.answers import AnswerStore
from lit_eve.evaluation.callbacks import KeepAnswers
from lit_eve.evaluation.results import rate_answers
from lit_eve.evaluation.run import fingerprint
from lit_eve.evaluation.tasks import find_tasks, load_tasks
from lit_eve.nano.world.benchmarks import write_benchmarks
from lit_eve.testing.forks import in_processes
from lit_eve.training import LitEve
from lit_eve.training.cli import EveCLI
from tests.evaluation.micro import lines_of, make_model, make_pope
from tests.two_processes import in_two_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Folder with ``data`` and ``model``, and the evaluation of one by the other in ``whole``."""
    folder = tmp_path_factory.mktemp("evaluation")
    make_pope(folder / "data")
    make_model(folder / "model")
    evaluate(folder, folder / "whole")
    return folder


def arguments(given: Path, output: Path, *more: str) -> list[str]:
    model = [] if "--answers" in more else ["--model", str(given / "model")]
    fixed = ["--benchmarks", "pope", "--max-new-tokens", "6", "--batch-size", "4", "--num-workers", "0"]
    return ["evaluate", *model, "--data", str(given / "data"), "--output", str(output), *fixed, *more]


def evaluate(given: Path, output: Path, *more: str) -> dict:
    """Run the command in this process; the result of the one task."""
    assert main(arguments(given, output, "--accelerator", "cpu", "--devices", "1", *more)) == 0
    (result,) = json.loads((output / "results.json").read_text())["results"]
    return result


def refusal(capsys, *command: str) -> str:
    assert main(list(command)) == 2
    return capsys.readouterr().err


def test_answers_are_those_of_one_question_at_a_time(given):
    model, processor = lit_eve.load(given / "model")
    data = given / "data"
    (task,) = load_tasks(find_tasks("pope", data), data, progress=False)
    lines = lines_of(given / "whole/predictions/pope.jsonl")
    assert [row["question_id"] for row in lines] == [question.id for question in task.questions]
    assert [row["prompt"] for row in lines] == [question.prompt for question in task.questions]
    assert len({row["text"] for row in lines}) > 10
    for row, question in zip(lines, task.questions, strict=True):
        (alone,) = answer_all(model, processor, [(question.images, question.prompt)], max_new_tokens=6, progress=None)
        assert row["text"] == alone


def test_the_folder_of_an_evaluation(given):
    output = given / "whole"
    assert sorted(path.name for path in output.iterdir()) == [
        "predictions", "results.csv", "results.json", "results.md", "settings.json"
    ]  # fmt: skip
    rows = list(csv.reader((output / "results.csv").open()))
    result = json.loads((output / "results.json").read_text())["results"][0]
    assert rows[0] == ["model", "POPE", "notes"]
    assert rows[1] == [given.name, f"{result['score']:.1f}", "POPE: 21 questions; the official set has 9,000"]
    assert rows[2][:2] == ["EVE-7B", "83.6"]
    table = (output / "results.md").read_text()
    assert f"| **{given.name}** | **{result['score']:.1f}**\\* |" in table and "| LLaVA-1.5 7B | 85.9 |" in table
    assert f"| f1/random | {result['scores']['f1/random']:.2f} |" in table


def of_yaml(given: Path, output: Path, **more: object) -> list[str]:
    """What ``train.py`` takes for the same evaluation."""
    settings = {
        "model.init_from": given / "model",
        "data.path": given / "data",
        "data.benchmarks": "pope",
        "data.max_new_tokens": 6,
        "data.num_workers": 0,
        "trainer.default_root_dir": output,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        **more,
    }
    config = str(ROOT / "experiments/evaluation/ten.yaml")
    return ["test", "--config", config, *(f"--{key}={value}" for key, value in settings.items())]


def test_train_py_test_does_the_same(given, tmp_path):
    EveCLI(args=of_yaml(given, tmp_path / "run"))
    for file in ("predictions/pope.jsonl", "results.csv"):
        assert (tmp_path / "run" / file).read_text() == (given / "whole" / file).read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_answer_and_score_like_one(given, tmp_path, strategy):
    def run() -> None:
        if strategy == "ddp":
            assert main(arguments(given, tmp_path / "run", "--accelerator", "cpu", "--devices", "2")) == 0
        else:
            settings = {"trainer.strategy": strategy, "trainer.devices": 2, "trainer.precision": "32-true"}
            EveCLI(args=of_yaml(given, tmp_path / "run", **settings))

    in_two_processes(run)
    for file in ("predictions/pope.jsonl", "results.csv", "results.json", "settings.json"):
        assert (tmp_path / "run" / file).read_text() == (given / "whole" / file).read_text()


def test_killed_and_called_again_it_asks_only_what_has_no_answer(given, tmp_path):
    output = tmp_path / "run"
    part = output / "predictions" / ".pope.jsonl.0"

    def dies() -> None:
        append = AnswerStore.append

        def last_words(store: AnswerStore, *answered: Sequence) -> None:
            append(store, *answered)
            if part.read_text().count("\n") >= 8:
                os.kill(os.getpid(), signal.SIGKILL)

        AnswerStore.append = last_words
        evaluate(given, output)

    with pytest.raises(ProcessExitedException) as killed:
        in_processes(1, dies)
    assert killed.value.signal_name == "SIGKILL"
    before = lines_of(part)
    assert 8 <= len(before) < 21
    marked = [{**row, "text": f"kept {i}"} for i, row in enumerate(before)]
    part.write_text("".join(json.dumps(row) + "\n" for row in marked) + '{"question_id": "ra')
    evaluate(given, output)
    after = {row["question_id"]: row["text"] for row in lines_of(output / "predictions/pope.jsonl")}
    kept = {row["question_id"]: row["text"] for row in marked}
    fresh = {row["question_id"]: row["text"] for row in lines_of(given / "whole/predictions/pope.jsonl")}
    assert after == fresh | kept and len(after) == 21
    evaluate(given, output)  # nothing is left to ask
    assert {row["question_id"]: row["text"] for row in lines_of(output / "predictions/pope.jsonl")} == after


def test_a_folder_holds_the_answers_of_one_model(given, tmp_path, capsys):
    evaluate(given, tmp_path / "run", "--limit", "3")
    evaluate(given, tmp_path / "run", "--limit", "3", "--model", f"{given / 'model'}/")  # the same in other words
    told = refusal(capsys, *arguments(given, tmp_path / "run", "--template", "plain"))
    assert re.search(r"run holds answers with another template \('chat', now 'plain'\): choose another folder", told)
    (tmp_path / "model").mkdir()
    make_model(tmp_path / "model", seed=4)
    (tmp_path / "data").symlink_to(given / "data")
    told = refusal(capsys, *arguments(tmp_path, tmp_path / "run"))
    assert "run holds answers with another weights" in told and f"those of {given / 'model'}: choose another" in told
    assert "template of the benchmarks: unknown template 'nosuch'" in refusal(
        capsys, *arguments(given, tmp_path / "run", "--template", "nosuch")
    )


def test_the_same_weights_elsewhere_are_the_same_model(given, tmp_path):
    evaluate(given, tmp_path / "run", "--limit", "3")
    shutil.copytree(given / "model", tmp_path / "copy")
    before = (tmp_path / "run/predictions/pope.jsonl").read_text()
    (tmp_path / "run/predictions/pope.jsonl").write_text(before.replace('"text": "', '"text": "kept '))
    evaluate(given, tmp_path / "run", "--limit", "3", "--model", str(tmp_path / "copy"))
    assert (tmp_path / "run/predictions/pope.jsonl").read_text().count("kept ") == 3


def test_other_weights_under_the_same_path_are_noticed(given, tmp_path, capsys):
    (tmp_path / "data").symlink_to(given / "data")
    make_model(tmp_path / "model")
    evaluate(tmp_path, tmp_path / "run", "--limit", "3")
    make_model(tmp_path / "model", seed=4)
    assert "run holds answers with another weights" in refusal(capsys, *arguments(tmp_path, tmp_path / "run"))


def test_a_folder_without_answers_is_nobodys(given, trainer, monkeypatch, tmp_path, capsys):
    module = LitEve(init_from=str(given / "model"))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(module, "_answer", out_of_memory)
        trainer.test(module, few(given), verbose=False)
    assert (tmp_path / "run/settings.json").exists()
    trainer.test(module, few(given, max_new_tokens=3), verbose=False)
    with pytest.raises(ConfigError, match="run holds answers with another max_new_tokens"):
        trainer.test(module, few(given), verbose=False)
    told = refusal(capsys, *arguments(given, tmp_path / "out", "--answers", str(given / "whole")))
    assert "whole/pope.jsonl: there is no such file" in told
    assert evaluate(given, tmp_path / "out", "--answers", str(given / "whole/predictions"))["answered"] == 21


def test_two_evaluations_do_not_share_a_folder(given, trainer, monkeypatch, tmp_path, capsys):
    module, told = LitEve(init_from=str(given / "model")), []
    answer = module._answer

    def meanwhile(*asked):
        if not told:
            told.append(refusal(capsys, *arguments(given, tmp_path / "run", "--max-new-tokens", "2")))
        return answer(*asked)

    monkeypatch.setattr(module, "_answer", meanwhile)
    trainer.test(module, few(given), verbose=False)
    assert f"another evaluation is at work in {tmp_path / 'run'}: wait for it, or choose another folder" in told[0]
    trainer.test(module, few(given), verbose=False)
    assert not (tmp_path / "run/.lock").exists()


def test_a_run_that_ended_with_an_error_is_scored_later_under_its_own_name(damaged, capsys):
    refusal(capsys, *arguments(damaged, damaged / "run"))
    evaluate(damaged, damaged / "run", "--answers", str(damaged / "run/predictions"), "--allow-partial")
    assert f"| **{damaged.name}** |" in (damaged / "run/results.md").read_text()


def test_a_question_about_a_mended_image_is_asked_again(damaged):
    """An answer about other pixels is another answer."""
    evaluate(damaged, damaged / "run", "--allow-partial")
    predictions = damaged / "run/predictions/pope.jsonl"
    predictions.write_text(predictions.read_text().replace('"text": "', '"text": "kept '))
    image = damaged / "data/pope/val2014/COCO_val2014_random_0004.jpg"
    image.write_bytes(image.read_bytes() + b" ")
    evaluate(damaged, damaged / "run", "--allow-partial")
    texts = {row["question_id"]: row["text"] for row in lines_of(predictions)}
    assert len(texts) == 20 and [id for id in texts if not texts[id].startswith("kept ")] == ["random/5"]


@pytest.mark.parametrize("limit", [2, 0.0, 0.5])
def test_a_trainer_that_would_cut_off_questions_is_refused(given, tmp_path, limit):
    settings = {"trainer.limit_test_batches": limit}
    with pytest.raises(ConfigError, match=f"trainer.limit_test_batches={limit}(.0)? would cut off questions of the benchmarks"):
        EveCLI(args=of_yaml(given, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_a_trial_run_leaves_nothing_behind(given, tmp_path):
    EveCLI(args=of_yaml(given, tmp_path / "run", **{"trainer.fast_dev_run": True}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reason", ["No such file or directory", "what is written there does not appear here"])
def test_processes_that_do_not_share_a_folder_are_told_at_once(given, tmp_path, monkeypatch, reason):
    monkeypatch.setattr("lit_eve.evaluation.data.PATIENCE", 0.3)
    if "appear" in reason:
        (tmp_path / "node1").mkdir()

    def run() -> None:
        own = tmp_path / f"node{os.environ['RANK']}"
        with pytest.raises(LitEveError, match=rf"is not the folder of the first process \({reason}\): give one that all share"):
            EveCLI(args=of_yaml(given, own, **{"trainer.strategy": "ddp", "trainer.devices": 2}))

    in_two_processes(run)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_any_single_number_is_another_fingerprint(dtype):
    model = torch.nn.Linear(300, 200).to(dtype)
    seen = {fingerprint(model)}
    assert fingerprint(model) in seen
    with torch.no_grad():
        for place in ((0, 0), (123, 234), (199, 299)):
            model.weight[place] += 1
            seen.add(fingerprint(model))
        model.weight[:] = model.weight.flip(1)
    assert len(seen | {fingerprint(model)}) == 5


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "use_distributed_sampler"), False)
    return Trainer(default_root_dir=tmp_path / "run", accelerator="cpu", devices=1, **quiet)


def few(given: Path, **settings: object) -> BenchmarkData:
    return BenchmarkData(str(given / "data"), ["pope"], **{"limit": 3, "max_new_tokens": 2, "num_workers": 0, **settings})


def test_a_template_that_ends_no_answer_is_refused_before_anything_is_asked(given, trainer):
    module = LitEve(init_from=str(given / "model"))
    with pytest.raises(ConfigError, match="^template of the benchmarks: .* ends an answer with nothing"):
        trainer.test(module, few(given, template={"name": "plain", "end": ""}), verbose=False)
    assert not Path(trainer.default_root_dir).exists()


def test_weights_that_change_in_memory_are_another_model(given, trainer):
    module = LitEve(init_from=str(given / "model"))
    trainer.test(module, few(given), verbose=False)
    trainer.test(module, few(given), verbose=False)
    with torch.no_grad():
        next(module.model.parameters()).view(-1)[5] += 1
    with pytest.raises(ConfigError, match="run holds answers with another weights"):
        trainer.test(module, few(given), verbose=False)


def out_of_memory(*asked):
    raise RuntimeError("out of memory")


def test_a_test_after_one_that_failed_begins_anew(given, trainer, monkeypatch):
    module, data = LitEve(init_from=str(given / "model")), few(given)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(module, "_answer", out_of_memory)
        trainer.test(module, data, verbose=False)
    assert not any(isinstance(callback, KeepAnswers) for callback in trainer.callbacks)
    data.limit = 5
    trainer.test(module, data, verbose=False)
    assert len(lines_of(Path(trainer.default_root_dir, "predictions/pope.jsonl"))) == 5


def test_an_error_of_the_first_rank_does_not_leave_the_others_waiting(given, trainer, monkeypatch):
    told = []
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda value, src=0: told.append(value) or value)
    monkeypatch.setattr(AnswerStore, "known", lambda self: Path("/nowhere/at/all").read_text())
    with pytest.raises(FileNotFoundError):
        trainer.test(LitEve(init_from=str(given / "model")), few(given), verbose=False)
    assert "No such file" in told[-1][1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("--devices", "0", "`Trainer(devices='0')` value is not a valid input using cpu accelerator"),
        ("--accelerator", "foo", "foo"),
        ("--num-workers", "-1", "num_workers of the benchmarks must be at least 0, got -1"),
    ],
)
def test_values_that_make_no_sense_are_told(given, tmp_path, capsys, key, value, message):
    assert message in refusal(capsys, *arguments(given, tmp_path / "run", key, value))


@pytest.mark.parametrize("devices", ["foo", "3x", "", "0,x"])
def test_devices_that_make_no_sense_are_told(given, tmp_path, capsys, devices):
    with pytest.raises(SystemExit) as exit:
        main(arguments(given, tmp_path / "run", "--devices", devices))
    assert exit.value.code == 2
    assert f"argument --devices: {devices!r} is neither auto, nor a number" in capsys.readouterr().err


def test_an_output_that_cannot_be_used_is_told(given, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert "run is no folder" in refusal(capsys, *arguments(given, tmp_path / "run"))
    told = "--output: /dev/null is no folder, so that /dev/null/x cannot be made"
    assert told in refusal(capsys, *arguments(given, Path("/dev/null/x")))


def test_part_of_the_questions_first_and_then_all(given, tmp_path):
    few = evaluate(given, tmp_path / "run", "--limit", "5")
    assert few["asked"] == 5 and few["notes"] == ["5 of 21 questions"]
    assert evaluate(given, tmp_path / "run") == evaluate(given, given / "whole")


@pytest.fixture
def damaged(given, tmp_path) -> Path:
    """The same files, with an image whose second half is missing and one that is not there."""
    make_pope(tmp_path / "data")
    (tmp_path / "model").symlink_to(given / "model")
    images = tmp_path / "data/pope/val2014"
    broken = images / "COCO_val2014_popular_0002.jpg"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    return tmp_path


def test_an_image_that_breaks_off_costs_one_answer(damaged, capsys):
    told = refusal(capsys, *arguments(damaged, damaged / "run"))
    assert "POPE: coco_pope_popular.json, line 3" in told
    assert told.endswith("; --allow-partial scores the rest\n") and "have no answer" not in told  # it is told once
    assert len(lines_of(damaged / "run/predictions/pope.jsonl")) == 20
    result = evaluate(damaged, damaged / "run", "--allow-partial")
    assert result["answered"] == 20 and result["notes"][0] == "partial: 20 of 21 questions, 1 problems"
    assert "POPE: coco_pope_popular.json, line 3" in (damaged / "run/results.md").read_text()


def test_problems_of_the_files_are_not_mixed_with_those_of_some_questions(damaged):
    (damaged / "data/pope/val2014/COCO_val2014_random_0000.jpg").unlink()
    result = evaluate(damaged, damaged / "few", "--allow-partial", "--limit", "2")
    assert result["notes"] == ["partial: 1 problems in the benchmark's files", "2 of 20 questions"]


def test_an_image_that_is_missing_is_told_before_a_model_is_loaded(damaged, capsys):
    (damaged / "data/pope/val2014/COCO_val2014_random_0000.jpg").unlink()
    told = refusal(capsys, *arguments(damaged, damaged / "run"))
    assert "coco_pope_random.json, line 1: the image" in told
    assert not (damaged / "run").exists()


def test_answers_that_are_there_already_are_scored(given, tmp_path):
    result = evaluate(given, tmp_path / "again", "--answers", str(given / "whole/predictions"))
    whole = json.loads((given / "whole/results.json").read_text())["results"][0]
    assert result == whole
    alone = evaluate(given, tmp_path / "file", "--answers", str(given / "whole/predictions/pope.jsonl"), "--name", "mine")
    assert alone == whole
    part = evaluate(given, tmp_path / "part", "--answers", str(given / "whole/predictions"), "--limit", "3")
    assert part["answered"] == 3 and part["notes"] == ["3 of 21 questions"]
    assert "| **mine** |" in (tmp_path / "file/results.md").read_text()


def test_answers_that_cannot_be_used_are_told_by_line_and_left_out_on_demand(given, tmp_path, capsys):
    lines = (given / "whole/predictions/pope.jsonl").read_text().splitlines()
    lines[1] = lines[0]
    lines[4] = lines[4][:30]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    command = ["--answers", str(tmp_path / "mine.jsonl")]
    told = refusal(capsys, *arguments(given, tmp_path / "out", *command))
    assert "mine.jsonl, line 2: question 'random/1' is answered twice" in told and "line 5: no JSON" in told
    assert not (tmp_path / "out/results.json").exists()
    result = evaluate(given, tmp_path / "out", *command, "--allow-partial")
    assert result["answered"] == 19 and result["notes"][0] == "partial: 19 of 21 questions, 3 problems"


def test_answer_files_that_are_missing_are_all_told_and_left_out_on_demand(given, tmp_path, capsys):
    data = make_pope(tmp_path / "data")
    write_benchmarks(tmp_path / "ten", questions=10)
    for name in ("gqa", "textvqa"):
        shutil.copytree(tmp_path / "ten" / name, data / name)
    (tmp_path / "answers").mkdir()
    shutil.copy(given / "whole/predictions/pope.jsonl", tmp_path / "answers")
    command = arguments(tmp_path, tmp_path / "out", "--answers", str(tmp_path / "answers"), "--benchmarks", "gqa,pope,textvqa")
    told = refusal(capsys, *command)
    assert "gqa.jsonl: there is no such file" in told and "textvqa.jsonl: there is no such file" in told
    assert main([*command, "--allow-partial"]) == 0
    (result,) = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert result["benchmark"] == "pope" and result["answered"] == 21
    assert "gqa.jsonl: there is no such file" in refusal(capsys, *command, "--allow-partial", "--benchmarks", "gqa")
    file = str(tmp_path / "answers/pope.jsonl")
    assert "pope.jsonl is one file, which holds the answers to one benchmark" in refusal(capsys, *command, "--answers", file)
    assert "there are no answers at" in refusal(capsys, *command, "--answers", f"{file}x")
    assert "limit of the benchmarks must be at least 1, got -5" in refusal(capsys, *command, "--limit", "-5")


def test_a_report_is_of_one_model_or_of_one_set_of_answers(given, tmp_path, capsys):
    shutil.copytree(given / "whole", tmp_path / "whole")
    own, copy = str(tmp_path / "whole/predictions"), tmp_path / "copy"
    shutil.copytree(own, copy)
    assert evaluate(given, tmp_path / "whole", "--answers", own)["answered"] == 21
    assert f"| **{given.name}** |" in (tmp_path / "whole/results.md").read_text()  # not named after its own folder
    shutil.copytree(own, tmp_path / "llava-1.5-7b")
    evaluate(given, tmp_path / "llava", "--answers", str(tmp_path / "llava-1.5-7b"))
    assert "| **llava-1.5-7b** |" in (tmp_path / "llava/results.md").read_text()
    told = refusal(capsys, *arguments(given, tmp_path / "whole", "--answers", str(copy)))
    assert f"whole holds the results of {given / 'model'}: choose another folder" in told
    for _ in range(2):
        evaluate(given, tmp_path / "out", "--answers", str(copy))
    told = f"out holds the results of {copy}: choose another folder"
    assert told in refusal(capsys, *arguments(given, tmp_path / "out", "--answers", own))
    assert told in refusal(capsys, *arguments(given, tmp_path / "out"))


def test_a_trainer_that_is_used_again_scores_once(given, trainer, monkeypatch):
    scored = []
    monkeypatch.setattr(callbacks, "rate_answers", lambda *args: scored.append(len(args[1])) or rate_answers(*args))
    module, data = LitEve(init_from=str(given / "model")), few(given)
    for times in (1, 2):
        trainer.validate(module, data, verbose=False)
        assert "benchmarks/pope" in trainer.callback_metrics
        assert scored == [3] * times


def test_damaged_settings_are_told(given, tmp_path, capsys):
    evaluate(given, tmp_path / "run", "--limit", "3")
    (tmp_path / "run/settings.json").write_text("{")
    assert "settings.json is damaged" in refusal(capsys, *arguments(given, tmp_path / "run"))


def test_a_benchmark_that_cannot_be_scored_does_not_withhold_the_others(given, tmp_path, capsys):
    data = make_pope(tmp_path / "data")
    write_benchmarks(tmp_path / "ten", questions=10)
    shutil.copytree(tmp_path / "ten/gqa", data / "gqa")
    shutil.copytree(given / "whole/predictions", tmp_path / "answers")
    (tmp_path / "answers/gqa.jsonl").write_text("")
    command = ["--answers", str(tmp_path / "answers"), "--benchmarks", "pope,gqa"]
    told = refusal(capsys, *arguments(tmp_path, tmp_path / "out", *command))
    assert "GQA: gqa.jsonl: 10 of 10 questions have no answer" in told and "the others are in" in told
    (result,) = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert main(arguments(tmp_path, tmp_path / "partial", *command, "--allow-partial")) == 0
    assert json.loads((tmp_path / "partial/results.json").read_text())["results"] == [result]
    assert result["benchmark"] == "pope" and result["answered"] == 21
