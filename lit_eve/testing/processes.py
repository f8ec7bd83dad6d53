"""Trainings of a composition: two processes that share a model are as good as one, and a killed run is repeated to the bit."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.multiprocessing import ProcessExitedException
from transformers import AutoModelForCausalLM, CLIPVisionModel, PreTrainedTokenizerFast

from lit_eve.data import ShardWriter
from lit_eve.models import EveConfig
from lit_eve.testing.composition import tiny_vision_config, wants_teacher
from lit_eve.testing.forks import in_processes
from lit_eve.training import LitEve
from lit_eve.training.blueprint import PARTS
from lit_eve.training.cli import EveCLI

STEPS, SAVED, KILLED = 4, 2, 3  # of a run; between two checkpoints; done when a run is killed
BOUND = 1e-4
"""Largest difference of losses and gradient norms in two processes, relative."""
_WORDS = 40  # of an answer; a prompt of Vicuna has about as many


class KillAt(Callback):
    """SIGKILL in the middle of an optimizer step.

    Args:
        step: number of optimizer steps done.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there, the step is not done."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def check_processes(config: EveConfig, training_class: type[LitEve] = LitEve) -> None:
    """Train for some steps: in one process, in two, and killed and called again.

    Args:
        config: the composition.
        training_class: a subclass of LitEve that trains it.

    Raises:
        AssertionError: the losses are others, or the weights not the same to the bit.
        LitEveError: training refuses the composition, or this process knows a GPU.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = _make_recipe(folder, config, training_class)
        in_processes(1, _fit, folder / "one", recipe)
        in_processes(2, _fit, folder / "two", recipe | {"trainer": recipe["trainer"] | {"strategy": "fsdp2", "devices": 2}})
        _compare_runs(folder / "two", folder / "one")
        kill = {"class_path": f"{KillAt.__module__}.KillAt", "init_args": {"step": KILLED}}
        try:
            in_processes(1, _fit, folder / "again", recipe | {"trainer": recipe["trainer"] | {"callbacks": [kill]}})
        except ProcessExitedException as error:
            if error.exit_code != -signal.SIGKILL:
                raise
        in_processes(1, _fit, folder / "again", recipe)
        _same_to_the_bit(folder / "again", folder / "one")


def _fit(run: Path, recipe: dict[str, Any]) -> None:
    file = run.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    sys.stdout = sys.stderr
    EveCLI(args=["fit", "--config", str(file), f"--trainer.default_root_dir={run}"])


# ---- what is trained, on what


def _make_recipe(folder: Path, config: EveConfig, training_class: type[LitEve]) -> dict[str, Any]:
    """A YAML file's content; decoder, teacher and shards are in the folder then."""
    torch.manual_seed(0)
    size = 4 * config.image_geometry.token_size, 3 * config.image_geometry.token_size
    slots = config.image_geometry.num_tokens(*size)
    _make_decoder(folder / "decoder", config)
    _make_shards(folder / "shards", size, slots, config.text_config.vocab_size)
    keys = [key for key in PARTS if key != "alignment_weight" or config.supervision is None]
    model = {"decoder": str(folder / "decoder"), "supervision": config.supervision, "stage": "pretrain", "lr": 1e-3}
    model |= {key: getattr(config, key) for key in keys}
    if wants_teacher(config):
        CLIPVisionModel(tiny_vision_config(config.image_geometry)).save_pretrained(folder / "teacher")
        model["teacher"] = str(folder / "teacher")
        if config.supervision is None:
            model["aligner"] = config.aligner
    data = {"train": str(folder / "shards"), "validation": None, "max_tokens": slots + 3 * _WORDS, "rows": 1}
    data |= {"global_batch": 4, "num_workers": 0}
    trainer = {"max_steps": STEPS, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "enable_progress_bar": False}
    own = training_class is not LitEve
    return {
        **({"model_class": f"{training_class.__module__}.{training_class.__qualname__}"} if own else {}),
        "seed_everything": 0,
        "model": model,
        "data": {"class_path": "FinetuneDataModule", "init_args": data},
        "trainer": trainer,
        "checkpoint": {"every_n_steps": SAVED},
    }


def _make_decoder(folder: Path, config: EveConfig) -> None:
    text = config.text_config
    AutoModelForCausalLM.from_config(text).save_pretrained(folder)
    words = {f"w{index}": index for index in range(text.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2", "unk_token": "w3"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _make_shards(folder: Path, size: tuple[int, int], slots: int, words: int) -> None:
    """Samples that each fill more than half a row, every second one without an image: a process has either images or none."""
    rng = random.Random(0)
    with ShardWriter(folder) as shards:
        for index in range(4 * STEPS):
            images = [] if index % 2 else [Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))]
            answer = " ".join(f"w{rng.randrange(4, words)}" for _ in range(_WORDS + (0 if images else slots)))
            question = {"from": "human", "value": "<image>\n" * len(images) + "w5 w6"}
            shards.write({"id": str(index), "conversations": [question, {"from": "gpt", "value": answer}]}, images)


# ---- what it came to


def _rows(run: Path) -> list[dict[str, str]]:
    """What was logged at each step, but for the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{tag: value for tag, value in row.items() if not tag.startswith("speed/")} for row in rows]


def _compare_runs(found: Path, expected: Path) -> None:
    """Losses and gradient norms of two processes and of one."""
    rows = _rows(found), _rows(expected)
    assert [len(of_one) for of_one in rows] == [STEPS, STEPS], f"runs of {STEPS} steps logged {[*map(len, rows)]}"
    for two, one in zip(*rows, strict=True):
        for tag, value in one.items():
            if tag.startswith("train/"):
                wanted, got = float(value or "nan"), float(two[tag] or "nan")
                assert abs(got - wanted) <= BOUND * max(abs(wanted), 1e-2), (
                    f"{tag} of step {one['step']} is {got:.7g} in two FSDP2 processes and {wanted:.7g} in one: something is "
                    "no sum over the global batch, differs from process to process, or is computed outside of the forward pass"
                )


def _same_to_the_bit(found: Path, expected: Path) -> None:
    """A run that was killed and called again, and one that never was."""
    for again, whole in zip(_rows(found), _rows(expected), strict=True):
        other = [f"{tag} {again[tag]} instead of {value}" for tag, value in whole.items() if again[tag] != value]
        assert not other, f"after a kill, step {whole['step']} is not repeated: {other[0]}; something is in no checkpoint"
    for path in sorted((expected / "model").glob("*.safetensors")):
        weights, again = load_file(path), load_file(found / "model" / path.name)
        other = [name for name, value in weights.items() if not torch.equal(value, again[name])]
        assert not other, f"{other[0]} of a run that was killed and called again has not the same bits"
