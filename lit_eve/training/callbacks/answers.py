"""What the model says about a few validation images, in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_eve.data import EveDataModule
from lit_eve.processing import Sample, load_image
from lit_eve.training.generation import generate_answers, split_answer

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
        prompts, images, expected = zip(*map(split_answer, self._samples), strict=True)
        inputs = processor(conversation=list(prompts), images=[list(row) for row in images], template=template)
        answers = generate_answers(pl_module.model, processor, inputs, self.max_new_tokens)
        if not trainer.is_global_zero:
            return
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for index, sample in enumerate(self._samples):
            question = processor.apply_chat_template(prompts[index], template=template, add_generation_prompt=True)
            words = {"prompt": question, "answer": answers[index], "expected": expected[index]}
            text = "\n\n".join(f"**{key}** {value}" for key, value in words.items())
            for board in boards:
                board.add_text(f"answers/{index}", text.replace("<", "&lt;"), trainer.global_step)
                if not self._shown:
                    for number, image in enumerate(images[index]):
                        thumbnail = load_image(image, sample.key)
                        thumbnail.thumbnail((_SIDE, _SIDE))
                        board.add_image(f"answers/{index}/image_{number}", np.asarray(thumbnail), dataformats="HWC")
        self._shown = True
