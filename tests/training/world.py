"""A micro world for training tests: a random decoder, a random teacher, and batches."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from lit_eve.data import ShardWriter
from lit_eve.training import LitEve
from lit_eve.training.callbacks.stop import Stopped
from lit_eve.training.cli import EveCLI
from tests.models import tiny

ROOT = Path(__file__).parents[2]
LR = 2e-3
DATA = ROOT / "tests" / "data" / "eve_v1"
ARCHITECTURE = {
    "patch_embedding": {"name": "eve_v1", "width": 16, "num_heads": 4},
    "geometry": tiny.GEOMETRY,
    "aligner": {"name": "layerwise", "layer_interval": 1, "num_heads": 4},
}


def make_decoder(folder: Path) -> Path:
    """A transformers folder with a random LLaMA and the reference tokenizer."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in (DATA / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def make_teacher(folder: Path, patch_size: int = 8) -> Path:
    """A transformers folder with a random CLIP vision transformer."""
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=patch_size
    )
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


def make_module(world: Path, **kwargs) -> LitEve:
    """A LitEve over the micro world; its arguments may be replaced."""
    settings = {"decoder": str(world / "decoder"), "teacher": str(world / "teacher"), **ARCHITECTURE, "lr": 1e-2}
    torch.manual_seed(0)
    return LitEve(**(settings | kwargs))


def make_batches(module: LitEve, windows: list[list[list[list[int]]]], seed: int = 0) -> list[dict]:
    """Batches as a datamodule yields them.

    Args:
        windows: accumulation windows of micro-batches of rows of samples, each sample given by its number of images.
            The samples are the same for the same flat list, however it is cut into batches.
    """
    flat = [images for window in windows for micro in window for row in micro for images in row]
    samples = iter(tiny.samples(module.model, flat, seed))
    batches, number = [], 0
    for window in windows:
        micros = [tiny.packed([[next(samples) for _ in row] for row in micro]) for micro in window]
        targets = sum(len(micro["target_positions"]) for micro in micros)
        images = sum(len(micro["image_grid_hw"]) for micro in micros)
        for index, micro in enumerate(micros):
            number += (count := len(micro["image_grid_hw"]))
            micro["image_seeds"] = torch.arange(number - count, number)
            if module.teacher_grid is None:
                del micro["teacher_pixel_values"]
            batches.append(
                micro
                | {
                    "num_targets": torch.tensor(targets),
                    "num_images": torch.tensor(images),
                    "num_padding": 0,
                    "sample_ids": [f"sample-{len(batches)}-{index}"],
                    "shards": [f"shard-{len(batches)}.tar"],
                }
            )
    return batches


def loader(batches: list[dict]) -> DataLoader:
    """A loader over finished batches."""
    return DataLoader(batches, batch_size=None, shuffle=False)


def trainer(folder: Path, **kwargs) -> Trainer:
    """A quiet trainer on the CPU."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return Trainer(**(settings | kwargs))


def make_shards(folder: Path, count: int, seed: int = 0) -> Path:
    """Captioned images of noise, of random sizes; every fifth sample has two images, every seventh none."""
    rng = random.Random(seed)
    with ShardWriter(folder) as shards:
        for index in range(count):
            number = 0 if index % 7 == 6 else 2 if index % 5 == 4 else 1
            images = []
            for _ in range(number):
                width, height = rng.randint(20, 90), rng.randint(20, 90)
                images.append(Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)))
            words = " ".join(rng.choices(["red", "green", "circle", "above", "the", "small"], k=rng.randint(3, 12)))
            human = {"from": "human", "value": "<image>\n" * number + "What is this?"}
            shards.write({"id": f"{seed}-{index:04d}", "conversations": [human, {"from": "gpt", "value": words}]}, images)
    return folder


def arguments(world: Path, run: Path, stage: str = "1_prealign", **overrides: object) -> list[str]:
    """Command line of a fit with a shipped YAML of the miniature world, over the micro world's data."""
    settings = {
        "model.lr": LR,
        "model.optimizer": "{name: adamw, betas: [0.9, 0.98]}",  # whatever the shipped file takes
        "model.teacher": world / "teacher",
        "data.train": world / "train",
        "data.validation": world / "validation",
        "data.max_tokens": 256,
        "data.rows": 1,
        "data.num_workers": 0,  # processes that read are the subject of few tests, and to start them takes as long as to train
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.default_root_dir": run,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
        "checkpoint.every_n_steps": 4,
        "answers.num_samples": 1,
        "answers.max_new_tokens": 4,
    }
    if stage == "1_prealign":
        settings |= {
            "model.decoder": world / "decoder",
            "model.template": "vicuna_v1",
            **{f"model.geometry.{key}": value for key, value in tiny.GEOMETRY.items()},
            "model.patch_embedding.width": 16,
            "model.patch_embedding.num_heads": 4,
            "model.aligner.num_heads": 4,
        }
    settings |= overrides
    return ["fit", "--config", str(ROOT / f"experiments/nano/{stage}.yaml"), *(f"--{k}={v}" for k, v in settings.items())]


def scalars(run: Path, tag: str) -> dict[int, float]:
    """What TensorBoard shows of a run: value by step."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def run_until_stopped(command: list[str], step: int) -> None:
    """A fit that hears SIGTERM in the middle of an optimizer step, after so many."""
    kill = ["--trainer.callbacks+=tests.training.killer.SignalAt", f"--trainer.callbacks.step={step}"]
    with pytest.raises(Stopped):
        EveCLI(args=[*command, *kill, f"--trainer.callbacks.signum={int(signal.SIGTERM)}"])


def assert_equal_runs(run: Path, other: Path, tags: Iterable[str], files: Iterable[str]) -> None:
    """The same curves and the same saved weights, to the bit."""
    for tag in tags:
        assert scalars(run, tag) == scalars(other, tag), tag
    for file in files:
        ours, theirs = (load_file(folder / "model" / file) for folder in (run, other))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), file


def assert_near_runs(run: Path, other: Path, tags: Iterable[str], files: Iterable[str]) -> None:
    """The same curves and the same saved weights, but for the order of sums: as on other processes."""
    for tag in tags:
        found, expected = scalars(run, tag), scalars(other, tag)
        assert found.keys() == expected.keys() and len(found) > 1
        for step, value in expected.items():
            assert found[step] == pytest.approx(value, rel=1e-5, abs=1e-5), (tag, step)
    for file in files:
        ours, theirs = (load_file(folder / "model" / file) for folder in (run, other))
        assert all(torch.allclose(ours[key], value, rtol=1e-3, atol=1e-4) for key, value in theirs.items()), file


def texts(run: Path) -> dict[str, str]:
    """What TensorBoard shows of a run: the last text of each tag."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
