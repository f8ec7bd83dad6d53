"""The benchmark of a training step runs, in small, and what it prints adds up."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from lit_eve.planning.gpus import peak_flops
from lit_eve.training.stages import STAGES

SMALL = ["--model", "tiny", "--rows", "2", "--steps", "5", "--warmup", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def train_step() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("train_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "options", [["--dtype", "float32"], ["--checkpointing", "--layers", "4", "--no-teacher"]], ids=" ".join
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


@pytest.mark.parametrize("name", ["flash_attention_2", "packed_varlen"])
def test_an_attention_that_is_not_here_is_named(train_step, name):
    with pytest.raises(SystemExit, match=f"--attention {name}: .*(FlashAttention2|NVIDIA GPU)"):
        train_step.main([*SMALL, "--attention", name])


def test_peaks_by_name():
    names = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989}
    assert {name: peak_flops(name) / 1e12 for name in names} == names
    for unknown in ("Tesla T4", "NVIDIA A10G", "NVIDIA L40", "NVIDIA RTX A1000"):
        assert peak_flops(unknown) is None
