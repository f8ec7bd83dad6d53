"""Trainings on a GPU have the losses of the CPU: optimizers, precisions, page-locked batches, checkpoints, FSDP2 with NCCL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lit_eve.training.cli import EveCLI
from tests.training import world as micro
from tests.training.world import scalars

pytestmark = pytest.mark.gpu
LOSSES = ("train/loss", "train/language_loss", "train/alignment_loss", "val/loss")
STEPS = {"trainer.max_steps": 8, "trainer.gradient_clip_val": 0.5, "data.global_batch": 2}
GPU = {"trainer.accelerator": "gpu", "trainer.devices": 1}


def same(found: str, expected: str, tolerance: float) -> None:
    """Fail unless two runs show the same scalars."""
    for tag in (*LOSSES, "train/gradient_norm") if tolerance < 0.01 else LOSSES:
        ours, theirs = scalars(found, tag), scalars(expected, tag)
        assert ours.keys() == theirs.keys() and ours, tag
        for step, value in theirs.items():
            assert ours[step] == pytest.approx(value, rel=tolerance, abs=tolerance), (tag, step)


def start(arguments: list[str]) -> subprocess.CompletedProcess:
    """A training in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(micro.ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=micro.ROOT, env=environment, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def on_cpu(world, tmp_path_factory):
    """The same training on the CPU, in float32."""
    run = tmp_path_factory.mktemp("cpu")
    EveCLI(args=micro.arguments(world, run, **STEPS))
    return run


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2e-3), ("bf16-mixed", 0.05), ("bf16-true", 0.1)])
def test_one_gpu(world, on_cpu, tmp_path, precision, tolerance):
    EveCLI(args=micro.arguments(world, tmp_path, **STEPS, **GPU, **{"trainer.precision": precision}))
    same(tmp_path, on_cpu, tolerance)


def test_a_killed_run_goes_on_as_if_it_had_not_stopped(world, on_cpu, tmp_path):
    settings = STEPS | GPU | {"trainer.precision": "32-true", "checkpoint.every_n_steps": 4}
    arguments = micro.arguments(world, tmp_path, **settings)
    kill = (
        "--trainer.callbacks+=tests.training.killer.KillAt",
        "--trainer.callbacks.step=6",
        "--trainer.callbacks.saving=False",
    )
    killed = start([*arguments, *kill])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    EveCLI(args=arguments)
    same(tmp_path, on_cpu, 2e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2e-3), ("bf16-mixed", 0.05)])
def test_fsdp2_on_one_gpu(world, on_cpu, tmp_path, precision, tolerance):
    """Sharded to one part: NCCL, gathering, checkpoints in the background, a model filled on the GPU."""
    settings = STEPS | GPU | {"trainer.strategy": "fsdp2", "trainer.precision": precision, "checkpoint.every_n_steps": 4}
    run = start(micro.arguments(world, tmp_path, **settings))
    assert run.returncode == 0, run.stderr[-2000:]
    same(tmp_path, on_cpu, tolerance)
