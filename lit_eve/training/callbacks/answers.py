"""What the model says about a few validation images, in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_eve.data import EveDataModule
from lit_eve.processing import Sample, load_image
from lit_eve.training.generation import Question, ask, generate_answers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SIDE = 336  # of the logged images, in pixels


class SampleAnswers(Callback):
    """At each validation, answer a few validation samples and log question, answer and expected answer with the images.

    Args:
        num_samples: how many samples, the same ones each time; 0 turns this off.
        max_new_tokens: length of the longest answer.
    """

    def __init__(self, num_samples: int = 4, max_new_tokens: int = 48) -> None:
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
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if question.fault:
                words = {"not asked": question.fault}
            else:
                written = processor.apply_chat_template(question.conversation, template=template, add_generation_prompt=True)
                words = {"prompt": written, "answer": answer, "expected": question.expected}
            text = "\n\n".join(f"**{key}** {value}" for key, value in words.items())
            for board in boards:
                board.add_text(f"answers/{index}", text.replace("<", "&lt;"), trainer.global_step)
                if not self._shown and not question.fault:
                    _show_images(board, f"answers/{index}", question)
        self._shown = True


def _show_images(board: SummaryWriter, name: str, question: Question) -> None:
    for number, image in enumerate(question.images):
        thumbnail = load_image(image, question.key, max_pixels=inf, max_aspect_ratio=inf)
        thumbnail.thumbnail((_SIDE, _SIDE))
        board.add_image(f"{name}/image_{number}", np.asarray(thumbnail), dataformats="HWC")
