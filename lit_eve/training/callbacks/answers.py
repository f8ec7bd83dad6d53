"""What the model says about a few validation images, in ``answers.jsonl`` and in every logger that takes text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from lit_eve.data import EveDataModule
from lit_eve.errors import ConfigError
from lit_eve.models.generation.asking import Question, ask, generate_answers
from lit_eve.processing import Sample, load_image
from lit_eve.training.record import forget_after

FILE = "answers.jsonl"
_SIDE = 336  # of the logged images, in pixels


class SampleAnswers(Callback):
    """At each validation, answer a few validation samples.

    Prompt, answer and expected answer go to ``<run>/answers.jsonl`` and, with the images, to TensorBoard and to loggers that
    have ``log_text`` and ``log_image`` as Lightning's WandbLogger has.

    Args:
        num_samples: how many samples, the same ones each time; 0 turns this off.
        max_new_tokens: length of the longest answer.
    """

    def __init__(self, num_samples: int = 4, max_new_tokens: int = 48) -> None:
        for key, value, least in (("num_samples", num_samples, 0), ("max_new_tokens", max_new_tokens, 1)):
            if value < least:
                raise ConfigError(f"answers.{key} must be at least {least}, got {value}")
        self.num_samples, self.max_new_tokens = num_samples, max_new_tokens
        self._samples: Sequence[Sample] | None = None
        self._shown = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer on all ranks, as a sharded model needs; log on the first."""
        data = trainer.datamodule
        if trainer.sanity_checking or not self.num_samples or not isinstance(data, EveDataModule) or not trainer.loggers:
            return
        if not data.sources["validation"]:  # benchmarks alone
            return
        if self._samples is None:
            self._samples = data.samples("validation", self.num_samples)
        if not self._samples:
            return
        processor, template = pl_module.processor, data.template
        questions, prompts = ask([self._samples[index] for index in range(len(self._samples))], processor, template)
        answers = generate_answers(pl_module.model, processor, prompts, self.max_new_tokens, template)
        if not trainer.is_global_zero:
            return
        step, rows = trainer.global_step, []
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if question.fault:
                words = {"not asked": question.fault}
            else:
                written = processor.apply_chat_template(question.conversation, template=template, add_generation_prompt=True)
                words = {"prompt": written, "answer": answer, "expected": question.expected}
            rows.append({"step": step, "id": question.key, **words})
            images = [] if self._shown or question.fault else _thumbnails(question)
            for logger in trainer.loggers:
                _log(logger, f"answers/{index}", words, images, step)
        self._shown = True
        self._write(Path(trainer.default_root_dir, FILE), rows, step)

    def _write(self, path: Path, rows: list[dict[str, Any]], step: int) -> None:
        """Append what was answered at this step; what is there of it, or of steps that were lost, goes."""
        forget_after(path, step - 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _thumbnails(question: Question) -> list[Image.Image]:
    images = [load_image(image, question.key, max_pixels=inf, max_aspect_ratio=inf) for image in question.images]
    for image in images:
        image.thumbnail((_SIDE, _SIDE))
    return images


def _log(logger: Logger, name: str, words: dict[str, str], images: list[Image.Image], step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        text = "\n\n".join(f"**{key}** {value}" for key, value in words.items())
        logger.experiment.add_text(name, text.replace("<", "&lt;"), step)
        for number, image in enumerate(images):
            logger.experiment.add_image(f"{name}/image_{number}", np.asarray(image), dataformats="HWC")
        return
    if hasattr(logger, "log_text"):
        logger.log_text(key=name, columns=["step", *words], data=[[str(step), *words.values()]], step=step)
    if images and hasattr(logger, "log_image"):
        logger.log_image(key=f"{name}/images", images=images, step=step)
