"""Runs with other seeds: configs, processes side by side, tables; the whole of a measurement in small."""

from __future__ import annotations

import importlib.util
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
import yaml

from lit_eve.errors import LitEveError
from lit_eve.nano.pipeline import CONFIG
from lit_eve.nano.seeds import describe, run_in_parallel, slug, write_seeded_config
from lit_eve.nano.world.questions import TYPES
from tests.nano.test_pipeline import write_config

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("config", ["nano", "nano_hard"])
def test_every_seed_is_changed_and_nothing_else(tmp_path: Path, config: str) -> None:
    source = CONFIG.with_name(config)
    write_seeded_config(source, tmp_path, 7)
    names = {path.name for path in source.glob("*.yaml")}
    assert {path.name for path in tmp_path.iterdir()} == names and "3_finetune.yaml" in names
    for name in names:
        old, new = (yaml.safe_load((folder / name).read_text()) for folder in (source, tmp_path))
        assert {key for key in old if old[key] != new[key]} <= {"seed", "seed_everything"}
        assert (new.get("seed"), new.get("seed_everything")).count(7) == 1
        assert "seed" not in (new.get("data") or {}).get("init_args", {}), "the order of the data follows seed_everything"


def sleeper(log: Path, seconds: float, code: int = 0) -> list[str]:
    """A process that notes when it begins and ends."""
    program = f"""
import sys, time
log = open({str(log)!r}, "a")
print(time.time(), 1, file=log, flush=True); time.sleep({seconds}); print(time.time(), -1, file=log, flush=True)
print("said at the end"); sys.exit({code})
"""
    return [sys.executable, "-c", program]


def test_so_many_run_at_a_time(tmp_path: Path) -> None:
    commands = {str(i): sleeper(tmp_path / "log", 0.6) for i in range(5)}
    assert sorted(run_in_parallel(commands, tmp_path / "logs", at_a_time=2)) == list("01234")
    events = sorted(line.split() for line in (tmp_path / "log").read_text().splitlines())
    running = peak = 0
    for _, change in events:
        running += int(change)
        peak = max(peak, running)
    assert peak == 2 and running == 0
    assert (tmp_path / "logs" / "3.log").read_text() == "said at the end\n"


def test_an_error_names_the_run_and_ends_the_others(tmp_path: Path) -> None:
    commands = {"good": sleeper(tmp_path / "log", 60), "bad": sleeper(tmp_path / "other", 0.1, code=3)}
    start = time.monotonic()
    with pytest.raises(LitEveError, match=r"bad ended with 3: said at the end .*bad\.log"):
        list(run_in_parallel(commands, tmp_path, at_a_time=2))
    assert time.monotonic() - start < 30
    assert len((tmp_path / "log").read_text().splitlines()) == 1, "the other one was ended"


MEASUREMENT = """
from pathlib import Path
from lit_eve.nano.seeds import make_parser, measure_over_seeds

def run_seed(options, folder, seed):
    folder.mkdir(parents=True)
    (folder / "product").write_text(str(options.factor * seed))

def read_result(folder, seed):
    return {"seed": seed, "product": (folder / "product").read_text()}

def summary(runs):
    return {"runs": len(runs)}

def table(runs):
    return f"a table of {len(runs)}\\n"

def main(argv=None):
    parser = make_parser(__file__, __doc__, Path("nowhere"))
    parser.add_argument("--factor", type=int, default=1)
    return measure_over_seeds(parser, argv, run_seed, read_result, summary, table)

if __name__ == "__main__":
    main()
"""


def test_a_measurement_calls_its_script_for_every_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the options that it was given, its own among them; what comes out is a table and a JSON."""
    path, runs = tmp_path / "my_script.py", tmp_path / "runs"
    path.write_text(MEASUREMENT)
    main = runpy.run_path(str(path))["main"]
    result = main(["--seeds", "2", "--first", "3", "--factor", "10", "--output", str(runs)])
    assert list(result) == ["machine", "versions", "at_a_time", "summary", "runs"]
    assert result["runs"] == [{"seed": 3, "product": "30"}, {"seed": 4, "product": "40"}] and result["summary"] == {"runs": 2}
    (written,) = (tmp_path / "results").iterdir()
    assert written.name == f"my_script_{slug(result['machine']['processor'])}.json"
    assert json.loads(written.read_text()) == result
    assert (runs / "table.md").read_text() == "a table of 2\n" and "a table of 2\n" in (said := capsys.readouterr().out)
    assert str(written) in said and {path.name for path in runs.iterdir()} == {"seed_3", "seed_4", "logs", "table.md"}
    for few in (["--seeds", "0"], ["--at-a-time", "0"]):
        with pytest.raises(LitEveError, match="--seeds and --at-a-time must be at least 1"):
            main([*few, "--output", str(runs)])


def test_a_description_has_mean_median_and_deviation() -> None:
    assert describe([1.0, 2.0, 6.0]) == {
        "mean": 3.0,
        "least": 1.0,
        "median": 2.0,
        "greatest": 6.0,
        "deviation": pytest.approx(7**0.5),
    }
    assert describe([2.0])["deviation"] == 0.0
    assert slug("AMD EPYC 9B14 96-Core") == "amd_epyc_9b14_96_core"


def made_up_run(seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "seeds": {"stages": seed},
        "question_accuracy": accuracy,
        "shuffled_accuracy": 0.25,
        "blind_accuracy": 0.3,
        "caption_accuracy": 0.95,
        "by_type": dict.fromkeys(TYPES, accuracy),
        "benchmarks": {"gqa": 100 * accuracy, "pope": 80.0},
        "seconds": {"data_and_training": 200.0},
    }


def test_the_table_of_seeds_has_mean_least_and_deviation() -> None:
    module = script("nano_seeds")
    runs = [made_up_run(3, 0.8), made_up_run(4, 0.9)]
    lines = module.table(runs).splitlines()
    assert lines[2].startswith("| 3 | 0.800 | 0.800 ") and lines[2].endswith("| 0.250 | 0.300 | 200 |")
    assert lines[4].startswith("| **mean** | 0.850 ") and lines[5].startswith("| **least** | 0.800 ")
    assert lines[6].startswith("| **deviation** | 0.071 ")
    assert lines[-2:] == ["| median | 85.0 | 80.0 |", "| least | 80.0 | 80.0 |"]
    del runs[1]["by_type"]["place"]
    assert "place" not in module.table(runs) and "by_type/place" not in module.summary(runs)
    runs[1]["by_type"]["place"] = 0.9
    summary = module.summary(runs)
    assert summary["by_type/place"]["least"] == 0.8 and summary["benchmarks/gqa"]["median"] == 85.0


def test_an_exact_match_with_any_right_answer_counts(tmp_path: Path) -> None:
    answers = {"v1_0": "2<OR>two", "v1_1": "row-1<AND>column-3", "v1_2": "red", "v1_3": "small<OR>little"}
    (tmp_path / "mm-vet.json").write_text(json.dumps({name: {"answer": answer} for name, answer in answers.items()}))
    said = ["two", "row-1 column-3", "blue", "small"]
    lines = (json.dumps({"question_id": number, "text": text}) for number, text in enumerate(said))
    (tmp_path / "mmvet.jsonl").write_text("\n".join(lines))
    assert script("nano_seeds").exact_match(tmp_path / "mm-vet.json", tmp_path / "mmvet.jsonl") == 75.0


def tiny(folder: Path, source: str) -> Path:
    """A config of seconds."""
    return write_config(folder, source=CONFIG.with_name(source), world={"test": 16, "benchmarks": 10})


@pytest.mark.slow
def test_seeds_are_run_once_whatever_happens(tmp_path: Path) -> None:
    """Killed in the first run, and called again: two runs, made once each, in one file."""
    config, output = tiny(tmp_path / "config", "nano"), tmp_path / "runs"
    command = [sys.executable, str(ROOT / "benchmarks" / "nano_seeds.py"), "--seeds", "2", "--at-a-time", "1"]
    command += ["--config", str(config), "--output", str(output), "--results", str(tmp_path / "results")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    first = output / "seed_0" / "steps" / "1_prealign.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0 and not (output / "seed_1").exists()
    made = (output / "seed_0" / "language_model" / "model.safetensors").stat().st_mtime_ns
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert said.returncode == 0, said.stderr
    assert (output / "seed_0" / "language_model" / "model.safetensors").stat().st_mtime_ns == made
    (path,) = (tmp_path / "results").glob("nano_seeds_*.json")
    result = json.loads(path.read_text())
    assert [run["seeds"] for run in result["runs"]] == [
        dict.fromkeys(("world", "language_model", "teacher", "stages"), seed) for seed in (0, 1)
    ]
    for run in result["runs"]:
        assert run["by_type"].keys() <= set(TYPES) and len(run["benchmarks"]) == 10 and run["seconds"]["total"] > 0
    weights = [(output / f"seed_{seed}" / "model" / "model.safetensors").read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]
    assert "**deviation**" in said.stdout and (output / "table.md").read_text() in said.stdout
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert time.monotonic() - start < 90, "nothing is left to do"


def test_the_table_of_designs_has_a_row_for_each() -> None:
    module = script("nano_designs")
    numbers = dict.fromkeys(module.NUMBERS, 0.5)
    design = lambda right, seconds: numbers | {"question_accuracy": right, "core_seconds": {"1": seconds, "2": 1.0}}  # noqa: E731
    runs = [
        {"designs": {"eve_v1": design(0.8, 9), "other": design(0.9, 19)}},
        {"designs": {"eve_v1": design(0.7, 11), "other": design(0.6, 9)}},
    ]
    lines = module.table(runs).splitlines()
    assert lines[2:] == [
        "| eve_v1 | 80.0, 70.0 % | 50.0, 50.0 % | 0.500, 0.500 | 11 |",
        "| other | 90.0, 60.0 % | 50.0, 50.0 % | 0.500, 0.500 | 15 |",
    ]
    assert module.summary(runs)["other"]["question_accuracy"]["mean"] == pytest.approx(0.75)


def test_the_page_of_designs_has_the_numbers_of_its_file() -> None:
    runs = json.loads((ROOT / "benchmarks/results/nano_designs_amd_epyc.json").read_text())["runs"]
    page = (ROOT / "docs/models.md").read_text().partition("| design | questions answered right |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    for (title, *cells), name in zip(rows, runs[0]["designs"], strict=True):
        of = [run["designs"][name] for run in runs]
        expected = [
            *(", ".join(f"{100 * one[number]:.1f} %" for one in of) for number in ("question_accuracy", "caption_accuracy")),
            ", ".join(f"{one['caption_loss']:.3f}" for one in of),
            f"{fmean(sum(one['core_seconds'].values()) for one in of):.0f}",
        ]
        assert cells == expected and title[:4].lower() == name.replace("_", " ")[:4].replace("mono ", "mono-"), name


@pytest.mark.slow
def test_designs_share_what_comes_before_their_stages(tmp_path: Path) -> None:
    config, output = tiny(tmp_path / "config", "nano"), tmp_path / "runs"
    module = script("nano_designs")
    options = ["--seeds", "2", "--config", str(config), "--output", str(output), "--designs", "eve_v2"]
    result = module.main([*options, "--results", str(tmp_path / "results")])
    for run in result["runs"]:
        assert list(run["designs"]) == ["eve_v1", "eve_v2"]
        first, second = (output / f"seed_{run['seed']}" / name for name in run["designs"])
        weights = lambda folder, name: (folder / name / "model.safetensors").read_bytes()  # noqa: E731
        assert weights(first, "language_model") == weights(second, "language_model")
        assert weights(first, "model") != weights(second, "model") and not (second / "teacher").exists()
        assert list(run["designs"]["eve_v2"]["core_seconds"]) == ["1_prealign", "2_vision", "3_align", "4_finetune"]
    loss = [run["designs"]["eve_v2"]["caption_loss"] for run in result["runs"]]
    assert loss[0] != loss[1] and result["summary"]["eve_v2"]["caption_loss"]["mean"] == pytest.approx(fmean(loss))
    assert (output / "table.md").read_text().count("\n| eve_v") == 2
