"""FSDP2 with two real processes: the losses of one process, exact resume on another number of them, an end when one dies."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import lit_eve
from lit_eve.data import ShardWriter
from lit_eve.errors import ConfigError
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.training.callbacks import find_checkpoint
from lit_eve.training.callbacks.export import _gather
from lit_eve.training.cli import EveCLI
from tests.models import tiny
from tests.training import world as micro
from tests.training.world import scalars
from tests.two_processes import PROCESSES, in_two_processes

STAGES = ("1_prealign", "2_pretrain", "3_finetune")
TAGS = ("train/loss", "train/language_loss", "train/alignment_loss", "train/gradient_norm")
FEW_STEPS = {"trainer.max_steps": 4, "trainer.limit_val_batches": 0}
STEPS_ALONE = {"trainer.limit_val_batches": 0, "checkpoint.every_n_steps": 100}
VALIDATION = ("val/loss", "val/alignment_loss", "val/token_accuracy")


def launch(script: str, command: list[str], **kwargs) -> subprocess.CompletedProcess:
    """Run ``train.py`` in two processes, with one of the scripts for it."""
    return start([str(micro.ROOT / "launch" / script), *command], **kwargs)


def start(command: list[str], more_env=None, **kwargs) -> subprocess.CompletedProcess:
    """Run a program that starts two processes."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(micro.ROOT), "PYTHON": sys.executable, "DEVICES": str(PROCESSES)}
    return subprocess.run(
        command,
        cwd=micro.ROOT,
        env={**os.environ, **own, **(more_env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def train(*commands: list[str]) -> None:
    """Run trainings in two processes, one after the other."""
    in_two_processes(lambda: [EveCLI(args=command) for command in commands])


def arguments(world, run, stage: str, start, sharded: bool, **overrides) -> list[str]:
    settings = {
        "data.train": world / "mixed",
        "data.global_batch": 4,
        "checkpoint.every_n_steps": 2,
        "checkpoint.keep": -1,
        "trainer.gradient_clip_val": 0.5,
        "model.optimizer.weight_decay": 0.1,  # two parameter groups
        "model.gradient_checkpointing": True,
    }
    if sharded:
        settings |= {"trainer.strategy": "fsdp2", "trainer.devices": PROCESSES}
    if start is not None:
        settings["model.init_from"] = start
    return micro.arguments(world, run, stage, **settings | overrides)


@pytest.fixture(scope="module")
def mixed(world):
    """Samples that each fill more than half a row, so that a process has either images or none."""
    rng = random.Random(3)
    if not (world / "mixed").exists():
        from PIL import Image

        with ShardWriter(world / "mixed") as shards:
            for index in range(24):
                images = [] if index % 2 else [Image.frombytes("RGB", (64, 60), rng.randbytes(3 * 64 * 60))]
                words = " ".join(rng.choices(["red", "green", "circle", "above"], k=40 if images else 90))
                human = {"from": "human", "value": "<image>\n" * len(images) + "What is this?"}
                shards.write({"id": f"{index:04d}", "conversations": [human, {"from": "gpt", "value": words}]}, images)
    return world


@pytest.fixture(scope="module")
def runs(mixed, tmp_path_factory):
    """The first two stages in one process and in two, from the same start."""
    folder = tmp_path_factory.mktemp("fsdp")
    starts = {"1_prealign": None, "2_pretrain": folder / "one" / "1_prealign", "3_finetune": folder / "one" / "2_pretrain"}
    train_both(mixed, folder, starts, *STAGES[:2])
    return folder, starts


def train_both(mixed, folder, starts, *stages: str) -> None:
    """Stages in one process, and in two."""
    for stage in stages:
        EveCLI(args=arguments(mixed, folder / "one" / stage, stage, starts[stage], sharded=False))
    train(*(arguments(mixed, folder / "two" / stage, stage, starts[stage], sharded=True) for stage in stages))


@pytest.mark.parametrize("stage", [*STAGES[:2], pytest.param(STAGES[2], marks=pytest.mark.slow)])
def test_two_processes_train_like_one(runs, mixed, stage):
    one, two = (runs[0] / number / stage for number in ("one", "two"))
    if stage == STAGES[2]:
        train_both(mixed, *runs, stage)
    for tag in (*TAGS, *VALIDATION):
        expected, found = scalars(one, tag), scalars(two, tag)
        assert found.keys() == expected.keys() and len(found) > 1
        for step, value in expected.items():
            assert found[step] == pytest.approx(value, rel=1e-5, abs=1e-5), (tag, step)
    for file in ("model.safetensors", "aligner.safetensors"):
        expected, found = load_file(one / "model" / file), load_file(two / "model" / file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_process_had_images_while_the_other_had_none(runs, mixed):
    cli = EveCLI(
        args=arguments(mixed, runs[0] / "look", "2_pretrain", runs[1]["2_pretrain"], False, **{"trainer.max_steps": 1})
    )
    loader = cli.datamodule.train_dataloader()
    counts = [len(batch["image_grid_hw"]) for batch in loader]
    pairs = list(zip(counts[::2], counts[1::2], strict=False))
    assert any(bool(a) != bool(b) for a, b in pairs)


def test_the_frozen_decoder_did_not_move(runs, mixed):
    decoder = load_file(mixed / "decoder" / "model.safetensors")
    trained = load_file(runs[0] / "two" / "1_prealign" / "model" / "model.safetensors")
    for name, value in decoder.items():
        assert torch.equal(trained[f"language_model.{name}"], value), name


def cut(run, target, step: int):
    """A copy of a run as it was when it had just saved ``step``."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("model", "tensorboard"))
    for path in (target / "checkpoints").iterdir():
        if not path.name.startswith(f"step{step:08d}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert find_checkpoint(target).name == f"step{step:08d}.ckpt"
    return target


def test_resumed_on_another_number_of_processes(runs, mixed):
    """The same losses up to the order of sums; on the same number, as after the kill below, the same bits."""
    folder, starts = runs
    stage = "2_pretrain"
    command = lambda run, sharded: arguments(mixed, run, stage, starts[stage], sharded)  # noqa: E731
    two, one = folder / "two" / stage, folder / "one" / stage
    targets = {name: cut(run, folder / name, 2) for name, run in (("2to1", two), ("1to2", one))}
    EveCLI(args=command(targets["2to1"], False))
    train(command(targets["1to2"], True))

    for name, original in (("2to1", two), ("1to2", one)):
        for tag in TAGS:
            expected = {step: value for step, value in scalars(original, tag).items() if step > 2}
            found = scalars(targets[name], tag)
            assert expected and found.keys() == expected.keys()
            for step, value in expected.items():
                assert found[step] == pytest.approx(value, rel=1e-5, abs=1e-5), (name, tag)


@pytest.mark.parametrize("resumed", [("2to1",), pytest.param(("1to1", "1to2", "2to2"), marks=pytest.mark.slow)])
def test_muon(runs, mixed, tmp_path, resumed):
    """Its matrices are whole while they are orthogonalised: one process, two, and resumed on another number of them."""
    start = runs[1]["2_pretrain"]
    optimizer = "{name: muon, weight_decay: 0.1, ns_dtype: float32}"  # bfloat16 would round what lies between two numbers apart
    more = FEW_STEPS | {"model.optimizer": optimizer}
    command = lambda run, sharded: [  # noqa: E731
        argument
        for argument in arguments(mixed, tmp_path / run, "2_pretrain", start, sharded, **more)
        if "optimizer.weight_decay" not in argument
    ]
    names = {"1": "one", "2": "two"}
    for run, sharded in (("one", False), ("two", True), *((target, target.endswith("2")) for target in resumed)):
        if run in resumed:
            cut(tmp_path / names[run[0]], tmp_path / run, 2)
        train(command(run, True)) if sharded else EveCLI(args=command(run, False))

    close = lambda value: pytest.approx(value, rel=1e-4, abs=1e-4)  # noqa: E731
    weights = lambda run: load_file(tmp_path / run / "model" / "model.safetensors")  # noqa: E731
    for tag in TAGS:
        one, two = scalars(tmp_path / "one", tag), scalars(tmp_path / "two", tag)
        assert len(one) == 4 and two == close(one), tag
        for run in resumed:
            expected = {step: value for step, value in (one if run[0] == "1" else two).items() if step > 2}
            assert scalars(tmp_path / run, tag) == (expected if run[0] == run[-1] else close(expected)), (run, tag)
    for run in ("two", *resumed):
        for name, value in weights("one").items():
            assert_close(weights(run)[name], value, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        if run[0] == run[-1]:
            assert all(torch.equal(weights(run)[name], value) for name, value in weights(names[run[0]]).items())


@pytest.mark.parametrize("launched", ["forks", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_job_and_the_resumed_run_repeats_it(runs, mixed, tmp_path, launched):
    folder, starts = runs
    command = arguments(mixed, tmp_path / "run", "2_pretrain", starts["2_pretrain"], True, **{"data.num_workers": 1})
    kill = ["--trainer.callbacks+=tests.training.killer.KillAt", "--trainer.callbacks.step=3", "--trainer.callbacks.rank=1"]
    begin = time.monotonic()
    if launched == "forks":
        with pytest.raises(ProcessExitedException) as killed:
            train([*command, *kill])
        assert killed.value.signal_name == "SIGKILL"
    else:
        done = launch("torchrun.sh", [*command, *kill])
        assert done.returncode != 0 and "SIGKILL" in done.stderr
    assert time.monotonic() - begin < 120
    assert find_checkpoint(tmp_path / "run").name == "step00000002.ckpt"

    train(command)
    for tag in (*TAGS, *VALIDATION):
        assert scalars(tmp_path / "run", tag) == scalars(folder / "two" / "2_pretrain", tag), tag
    same, again = (load_file(run / "model" / "model.safetensors") for run in (folder / "two" / "2_pretrain", tmp_path / "run"))
    assert same.keys() == again.keys() and all(torch.equal(same[key], again[key]) for key in same)


def test_a_full_disk_leaves_the_checkpoint_before(runs, mixed, tmp_path):
    folder, starts = runs
    run = cut(folder / "two" / "2_pretrain", tmp_path / "run", 2)
    command = arguments(mixed, run, "2_pretrain", starts["2_pretrain"], True)

    def with_little_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # bytes of a file
        EveCLI(args=command)

    full = r"the checkpoint .*step00000004.ckpt could not be written \(.*File too large.*still there"
    with pytest.raises(ProcessRaisedException, match=full):
        in_two_processes(with_little_space)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step00000002.ckpt"]


def test_a_sharded_checkpoint_is_a_model_for_everyone(runs):
    """lit_eve.load and model.init_from read it as they read a file."""
    run = runs[0] / "two" / "2_pretrain"
    model, processor = lit_eve.load(find_checkpoint(run))
    exported = load_file(run / "model" / "model.safetensors")
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in exported.items())
    assert processor.geometry.image_size == 64
    aligner = {name: value for name, value in iterate_weights(find_checkpoint(run)) if name.startswith("aligner.")}
    assert {name.removeprefix("aligner.") for name in aligner} == set(load_file(run / "model" / "aligner.safetensors"))


@pytest.mark.parametrize(
    ("precision", "dtype", "close"),
    [("bf16-mixed", torch.float32, 0.02), pytest.param("bf16-true", torch.bfloat16, 0.05, marks=pytest.mark.slow)],
)
def test_bfloat16(runs, mixed, tmp_path, precision, dtype, close):
    folder, starts = runs
    more = STEPS_ALONE | {"trainer.precision": precision}
    train(arguments(mixed, tmp_path, "2_pretrain", starts["2_pretrain"], True, **more))
    expected, found = (scalars(run, "train/loss") for run in (folder / "one" / "2_pretrain", tmp_path))
    assert found != expected and found == pytest.approx(expected, rel=close)
    assert load_file(tmp_path / "model" / "model.safetensors")["projector.0.weight"].dtype == dtype


def test_hybrid_sharding(runs, mixed, tmp_path):
    folder, starts = runs
    hybrid = arguments(mixed, tmp_path, "2_pretrain", starts["2_pretrain"], True, **STEPS_ALONE)
    hybrid[hybrid.index("--trainer.strategy=fsdp2")] = "--trainer.strategy=lit_eve.training.FSDP2Strategy"
    train([*hybrid, "--trainer.strategy.replicas=2"])
    expected = scalars(folder / "one" / "2_pretrain", "train/loss")
    assert scalars(tmp_path, "train/loss") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["2to1", "2to2"])
def test_tied_embeddings(mixed, tmp_path, sharded):
    """Qwen and SmolLM have one table for embedding and head; it is one parameter in two places, sharded too."""
    decoder = micro.make_decoder(tmp_path / "decoder")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=512, tie_word_embeddings=True, **shape)).save_pretrained(decoder)
    more = FEW_STEPS | {"model.decoder": decoder, "model.stage": "pretrain"}
    command = lambda run, sharded: arguments(mixed, tmp_path / run, "1_prealign", None, sharded, **more)  # noqa: E731
    EveCLI(args=command("one", False))
    train(command("two", True))
    cut(tmp_path / "two", tmp_path / "again", 2)
    train(command("again", True)) if sharded else EveCLI(args=command("again", False))
    expected, found, again = (scalars(tmp_path / run, "train/loss") for run in ("one", "two", "again"))
    assert found == pytest.approx(expected, rel=1e-5)
    rest = {step: found[step] for step in again}
    assert again == (rest if sharded else pytest.approx(rest, rel=1e-5)) and len(again) == 2
    one, two = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys() and "language_model.lm_head.weight" not in one


def test_no_process_ever_holds_the_whole_model(tmp_path):
    """Nor does one that builds it without sharding hold it twice."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 24, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, **shape)).save_pretrained(tmp_path, max_shard_size="50MB")
    for file in (micro.DATA / "tokenizer").iterdir():
        shutil.copy(file, tmp_path)
    done = start([sys.executable, "-m", "tests.training.memory_worker", str(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    grew = re.findall(r"(sharded|whole) grew by (\d+) of (\d+)", done.stdout)
    assert [how for how, *_ in grew] == ["sharded"] * PROCESSES + ["whole"] * PROCESSES
    for how, peak, size in grew:
        own = int(size) / (PROCESSES if how == "sharded" else 1)
        assert 0.9 * own < int(peak) < own + 0.2 * int(size), f"{how}: {int(peak) / 1e6:.0f} MB of {int(size) / 1e6:.0f}"


def test_every_sample_is_answered_once_and_in_order(runs, mixed, tmp_path):
    folder, _ = runs
    start = folder / "one" / "2_pretrain"
    settings = {"data.limit_samples": 5, "model.max_new_tokens": 3}
    commands = [
        ["predict", *arguments(mixed, tmp_path / name, "3_finetune", start, name == "two", **settings)[1:]]
        for name in ("one", "two")
    ]
    EveCLI(args=commands[0])
    train(commands[1])
    one, two = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two"))
    assert len(one.splitlines()) == 5 and two == one


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.precision=64-true"], "trainer.precision: fsdp2 has no 64-true; choose 32-true, bf16-mixed or bf16-true"),
        (
            ["--trainer.strategy=lit_eve.training.FSDP2Strategy", "--trainer.strategy.replicas=3"],
            "1 devices cannot be shared out to replicas = 3",
        ),
    ],
)
def test_settings_that_cannot_be(world, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        EveCLI(args=[*micro.arguments(world, tmp_path / "run", **{"trainer.strategy": "fsdp2"}), *more])


SRUN = """#!/usr/bin/env bash
# Stands in for SLURM's: starts the tasks of one node here, and ends all when one fails.
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
done
wait -n && wait -n
"""


@pytest.mark.slow
def test_a_job_of_slurm(runs, mixed, tmp_path):
    folder, starts = runs
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "lit_eve", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "PATH": f"{srun.parent}:{os.environ['PATH']}"}
    done = launch("slurm.sh", arguments(mixed, tmp_path / "run", "2_pretrain", starts["2_pretrain"], True), more_env=job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert scalars(tmp_path / "run", "train/loss") == scalars(folder / "two" / "2_pretrain", "train/loss")


@pytest.mark.slow
def test_two_nodes_meet(runs, mixed, tmp_path):
    """Two launchers on this machine, with one process each."""
    folder, starts = runs
    with socket.socket() as free:
        free.bind(("localhost", 0))
        node = {"NODES": "2", "HEAD": "localhost", "PORT": str(free.getsockname()[1]), "DEVICES": "1"}
    command = arguments(mixed, tmp_path / "run", "2_pretrain", starts["2_pretrain"], True)
    with ThreadPoolExecutor(2) as nodes:
        done = [nodes.submit(launch, "torchrun.sh", command, more_env=node) for _ in range(2)]
    for one in done:
        assert one.result().returncode == 0, one.result().stderr[-3000:]
    assert scalars(tmp_path / "run", "train/loss") == scalars(folder / "two" / "2_pretrain", "train/loss")


def test_what_is_taken_out_of_lightning_is_there():
    """FSDP2Strategy.setup replaces these by nothing; under another name they would come back unnoticed."""
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    assert callable(_SignalConnector.register_signal_handlers)


def test_tied_weights_are_collected_once():
    model = tiny.model("qwen2_tied")
    names = set(_gather(model, keep=True))
    assert model.state_dict().keys() - names == {"language_model.lm_head.weight"}
    assert _gather(model, keep=False) == {}


def test_parts_of_ones_own_are_sharded_saved_and_resumed(mixed, tmp_path):
    """A head with a loss of its own; one of two processes has no image in a step, so that the head sees no token there."""
    own = FEW_STEPS | {"model_class": "tests.training.own_eve.PixelEve"}
    EveCLI(args=arguments(mixed, tmp_path / "one", "1_prealign", None, False, **own))
    train(arguments(mixed, tmp_path / "two", "1_prealign", None, True, **own))
    again = tmp_path / "again"  # from the sharded checkpoint of step 2, in one process
    shutil.copytree(tmp_path / "two", again, ignore=shutil.ignore_patterns("model", "step00000004.ckpt", "tensorboard"))
    EveCLI(args=arguments(mixed, again, "1_prealign", None, False, **own))
    checkpoint = find_checkpoint(tmp_path / "two")
    assert checkpoint.is_dir() and not [name for name, _ in iterate_weights(checkpoint) if "pixel" in name]
    for run, steps in (("two", 4), ("again", 2)):
        for tag in (*TAGS, "train/pixel_loss"):
            expected, found = scalars(tmp_path / "one", tag), scalars(tmp_path / run, tag)
            assert len(found) == steps
            for step, value in found.items():
                assert value == pytest.approx(expected[step], rel=1e-4, abs=1e-5), (run, tag, step)
        expected, found = (load_file(tmp_path / name / "model/auxiliary.safetensors") for name in ("one", run))
        assert found.keys() == expected.keys() == {"pixel_head.weight", "pixel_head.bias"}
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-3, atol=1e-5)
