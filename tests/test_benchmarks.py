"""The benchmark of a training step runs, in small, and what it prints adds up."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lit_eve.planning.gpus import peak_flops
from lit_eve.training.stages import STAGES

ROOT = Path(__file__).parents[1]
SMALL = ["--model", "tiny", "--rows", "2", "--steps", "5", "--warmup", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def train_step() -> ModuleType:
    return load("train_step")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return load("gpu")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


FLOAT32, RECOMPUTED = ["--dtype", "float32"], ["--checkpointing", "--layers", "4", "--no-teacher"]


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        *((stage, FLOAT32) for stage in STAGES),
        *(pytest.param(stage, RECOMPUTED, marks=() if stage == "pretrain" else pytest.mark.slow) for stage in STAGES),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_step_is_measured(train_step, stage, options, tmp_path, capsys):
    output = tmp_path / "result.json"
    train_step.main([*SMALL, "--stage", stage, "--peak-tflops", "0.5", "--output", str(output), *options])
    result = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["settings"]["stage"] == stage and len(result["step_seconds"]) == 5
    low, high = result["spread"]
    assert low <= 1 <= high and result["last_loss"] > 0 and result["peak_memory_gb"] > 0.1
    assert result["mfu"] == pytest.approx(result["tflops_per_second"] / 0.5)
    assert result["tokens_per_second"] * result["flops_per_token"] == pytest.approx(result["tflops_per_second"] * 1e12, rel=0.3)
    assert 0 <= result["padding"] < 0.2 and sum(result["flops_share"].values()) == pytest.approx(1)
    assert ("teacher" in result["flops_share"]) == ("--no-teacher" not in options)


def test_the_noise_of_eve_7b_is_packed_as_captions_are(train_step):
    options = train_step.parse(["--rows", "4", "--device", "cpu", "--no-teacher"])
    batches = train_step.make_batches(options, vocab_size=32000)
    loads = [train_step.Workload.of_batch(batch) for batch in batches]
    samples = sum(len(load.lengths) for load in loads)
    assert 0.96 < sum(load.num_tokens for load in loads) / (16 * 2048) <= 1
    assert sum(load.num_images for load in loads) == samples and 3 <= samples / 16 <= 4
    assert all(batch["max_seqlen"] < 2048 for batch in batches)
    assert 50 < sum(load.num_targets for load in loads) / samples < 130
    grids = {tuple(grid) for load in loads for grid in load.image_grid_hw.tolist()}
    assert len(grids) > 3, "photos of several shapes"


@pytest.mark.parametrize(
    "compiled", [[], pytest.param(["--compile", "--backend", "aot_eager"], marks=pytest.mark.slow)], ids=str
)
def test_what_the_plan_says_stands_beside_what_was_measured(train_step, capsys, compiled):
    train_step.main([*SMALL, "--stage", "pretrain", "--layers", "fit", *compiled])
    result = json.loads(capsys.readouterr().out)
    planned = result["planned_memory_gb"]
    kinds = sum(size for kind, size in planned.items() if kind not in ("total", "without_reserved"))
    assert planned["total"] == pytest.approx(kinds)
    assert planned["optimizer"] == pytest.approx(2 * planned["gradients"], rel=0.01) and planned["gradients"] > 0
    assert result["settings"]["layers"] == 8 and result["waits"] is None
    assert not compiled or result["compiled_graphs"] > 0


def test_memory_that_fits_decides_about_the_depth(train_step, monkeypatch):
    options = train_step.parse([*SMALL[:-3], "--layers", "fit", "--device", "cuda"])
    planned = {4: 10.0, 8: 14.0}
    monkeypatch.setattr(train_step, "planned_memory", lambda options, batches, layers: {"total": planned[layers]})
    for free, layers in ((9e9, 4), (13.9e9, 4), (14e9, 8), (100e9, 8)):
        monkeypatch.setattr(train_step.torch.cuda, "mem_get_info", lambda free=free: (free, free))
        assert train_step.fitting_layers(options, []) == layers


# ---- benchmarks/gpu.sh


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=570)


def test_without_a_gpu_it_says_so(tmp_path):
    run = start("--results", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("There is no GPU here") and run.stdout.count("|---|---|---|") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu(tmp_path):
    """Every part runs with tiny shapes; results are written after each, and copied."""
    out = tmp_path / "out"
    out.mkdir()
    run = start("--device", "cpu", "--tiny", "--budget", "560", "--results", str(tmp_path / "results"), OUT=str(out))
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "results" / "gpu_rehearsal.json").read_text())
    assert {name: part["status"] for name, part in report["parts"].items()} == dict.fromkeys(report["parts"], "ok")
    assert set(report["parts"]) >= {"device", "tests", "attention", "prealign", "pretrain", "decoding", "pretrain_compiled"}
    tests = report["parts"]["tests"]["result"]
    assert tests["tests"] == tests["skipped"] > 50 and tests["failed"] == {}
    text = (tmp_path / "results" / "gpu_rehearsal.md").read_text()
    assert text in run.stdout and text.count("| prealign |") == 2 and "NO" not in text
    assert {path.name for path in out.iterdir()} == {"gpu_rehearsal.json", "gpu_rehearsal.md", "gpu_logs.txt"}


def test_a_part_that_fails_or_hangs_leaves_its_last_lines(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORK", tmp_path)
    code = "import pathlib, sys; print('before'); {}; pathlib.Path(sys.argv[1]).write_text('[1]'); {}"
    run = lambda first, then, limit=60.0: gpu.run(  # noqa: E731
        gpu.Part("part", ["-uc", code.format(first, then), str(tmp_path / "part.out")], limit, gpu._read_json), 60
    )
    fine = run("pass", "pass")
    assert fine["status"] == "ok" and fine["result"] == [1] and "last_lines" not in fine
    raised = run("1 / 0", "pass")
    assert raised["status"] == "failed with exit code 1" and raised["result"] is None
    assert raised["last_lines"][0] == "before" and "ZeroDivisionError" in raised["last_lines"][-1]
    late = run("pass", "sys.exit(3)")
    assert late["status"] == "failed with exit code 3" and late["result"] == [1], "what it wrote is kept"
    hung = run("import time; time.sleep(60)", "pass", limit=2.0)
    assert hung["status"] == "ended after its limit of 2 s" and hung["seconds"] < 30 and hung["last_lines"] == ["before"]


def test_what_is_carried_has_a_version(gpu):
    packages = next(
        line.split('"')[1].split()
        for line in (ROOT / "benchmarks/gpu.sh").read_text().splitlines()
        if line.startswith("PACKAGES")
    )
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(packages) <= pinned


@pytest.mark.parametrize("name", ["flash_attention_2", "packed_varlen"])
def test_an_attention_that_is_not_here_is_named(train_step, name):
    with pytest.raises(SystemExit, match=f"--attention {name}: .*(FlashAttention2|NVIDIA GPU)"):
        train_step.main([*SMALL, "--attention", name])


def test_peaks_by_name():
    names = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989}
    assert {name: peak_flops(name) / 1e12 for name in names} == names
    for unknown in ("Tesla T4", "NVIDIA A10G", "NVIDIA L40", "NVIDIA RTX A1000"):
        assert peak_flops(unknown) is None


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_measurement_says_what_it_takes(path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code and "usage:" in capsys.readouterr().out


def test_image_attention_is_measured(tmp_path):
    load("image_attention").main(["--tiny", "--repeats", "2", "--output", str(tmp_path / "result.json")])
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["causal", "segments", "sample masks", "row masks"]
    assert rows[0]["pairs"] == 1 < rows[1]["pairs"] == rows[2]["pairs"] == rows[3]["pairs"]
