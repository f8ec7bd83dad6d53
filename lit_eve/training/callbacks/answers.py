"""What the model says about a few validation images and where it looks, for the run folder and for loggers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from lit_eve.data import EveDataModule
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.models.generation.asking import Question, ask, generate_answers, on_device
from lit_eve.processing import Sample, load_image
from lit_eve.training.record import forget_after

if TYPE_CHECKING:
    from lit_eve.interpretation import AnswerAttention
    from lit_eve.processing import EveProcessor

FILE = "answers.jsonl"
WORD_MAPS = "word_maps"
_SIDE = 336  # of the logged images, in pixels


class SampleAnswers(Callback):
    """At each validation, answer a few validation samples.

    Prompt, answer and expected answer go to ``<run>/answers.jsonl`` and, with the images, to TensorBoard and to loggers that
    have ``log_text`` and ``log_image`` as Lightning's WandbLogger has. So do pictures of where the model looked when it wrote
    each word: ``<run>/word_maps/step00000100_0.png``, of the first sample after 100 steps.

    Args:
        num_samples: how many samples, the same ones each time; 0 turns this off.
        max_new_tokens: length of the longest answer.
        word_maps: record where the model looks (mean attention over layers and heads). That holds 4 B L h T bytes per token of
            the answers: 16 MB for four samples, EVE-7B and 1000 tokens. Where attention cannot be recorded, or a photo has
            several views, they are answered without, after a warning.
    """

    def __init__(self, num_samples: int = 4, max_new_tokens: int = 48, word_maps: bool = True) -> None:
        for key, value, least in (("num_samples", num_samples, 0), ("max_new_tokens", max_new_tokens, 1)):
            if value < least:
                raise ConfigError(f"answers.{key} must be at least {least}, got {value}")
        self.num_samples, self.max_new_tokens, self.word_maps = num_samples, max_new_tokens, word_maps
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
        answers, strips = self._answer(pl_module, questions, prompts, template)
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
            images = {} if self._shown or question.fault else _thumbnails(question)
            if index in strips:
                images[WORD_MAPS] = strips[index]
            for logger in trainer.loggers:
                _log(logger, f"answers/{index}", words, images, step)
        self._shown = True
        self._write(Path(trainer.default_root_dir), rows, strips, step)

    def _answer(
        self, module: LightningModule, questions: Sequence[Question], prompts: Mapping[str, Any], template: Any
    ) -> tuple[list[str], dict[int, Image.Image]]:
        """The answers, and by the place of its question a picture of where the model looked."""
        model, processor = module.model, module.processor
        if self.word_maps:
            from lit_eve.interpretation import attend_prompts
            from lit_eve.interpretation.samples import check_whole

            frames = {
                index: [processor.geometry.frame(image) for image in _pictures(question)]
                for index, question in enumerate(questions)
                if question.images and not question.fault
            }
            try:
                for images in frames.values():
                    check_whole(processor.geometry, images)
                inputs = on_device(model, prompts)
                seen = attend_prompts(model, processor, inputs, max_new_tokens=self.max_new_tokens, template=template)
            except LitEveError as error:
                rank_zero_warn(f"answers are logged without word maps: {error}")
                self.word_maps = False
            else:
                strips = {index: _strip(images, seen[index], processor) for index, images in frames.items()}
                return [one.answer for one in seen], strips
        return generate_answers(model, processor, prompts, self.max_new_tokens, template), {}

    def _write(self, run: Path, rows: list[dict[str, Any]], strips: Mapping[int, Image.Image], step: int) -> None:
        """Add what was answered at this step; what is there of it, or of steps that were lost, goes."""
        forget_after(run / FILE, step - 1)
        run.mkdir(parents=True, exist_ok=True)
        with (run / FILE).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        for drawn, path in word_map_files(run):
            if drawn >= step:
                path.unlink()
        for index, strip in strips.items():
            (run / WORD_MAPS).mkdir(exist_ok=True)
            strip.save(run / WORD_MAPS / f"step{step:08d}_{index}.png")


def word_map_files(run: Path, index: int | None = None) -> list[tuple[int, Path]]:
    """Step and file of the pictures that :class:`SampleAnswers` drew in a run: of one sample, or of all."""
    files = sorted((run / WORD_MAPS).glob(f"step*_{'*' if index is None else index}.png"))
    return [(int(file.stem.removeprefix("step").partition("_")[0]), file) for file in files]


def _pictures(question: Question) -> list[Image.Image]:
    return [load_image(image, question.key, max_pixels=inf, max_aspect_ratio=inf) for image in question.images]


def _thumbnails(question: Question) -> dict[str, Image.Image]:
    images = _pictures(question)
    for image in images:
        image.thumbnail((_SIDE, _SIDE))
    return {f"image_{number}": image for number, image in enumerate(images)}


def _strip(images: Sequence[Image.Image], seen: AnswerAttention, processor: EveProcessor) -> Image.Image:
    """A strip for each image of a question, as the model sees it, one below the other."""
    from lit_eve.interpretation import word_maps
    from lit_eve.interpretation.strips import stacked, word_strip

    words = word_maps(seen, processor)
    return stacked([("", word_strip(image, words, number)) for number, image in enumerate(images)])


def _log(logger: Logger, name: str, words: Mapping[str, str], images: Mapping[str, Image.Image], step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        text = "\n\n".join(f"**{key}** {value}" for key, value in words.items())
        logger.experiment.add_text(name, text.replace("<", "&lt;"), step)
        for kind, image in images.items():
            at = step if kind == WORD_MAPS else None
            logger.experiment.add_image(f"{name}/{kind}", np.asarray(image), at, dataformats="HWC")
        return
    if hasattr(logger, "log_text"):
        logger.log_text(key=name, columns=["step", *words], data=[[str(step), *words.values()]], step=step)
    if hasattr(logger, "log_image"):
        for kind, image in images.items():
            logger.log_image(key=f"{name}/{kind}", images=[image], step=step)
