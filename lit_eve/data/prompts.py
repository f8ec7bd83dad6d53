"""Prompts in batches: those of like length together, shared out to ranks, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_eve.errors import SampleError
from lit_eve.processing import EveProcessor, Sample
from lit_eve.processing.processor import TemplateName

Row = list[tuple[int, bool]]
"""Indices of the prompts of a batch, and whether the answer of each counts."""


STAND_IN = Sample(
    "stand-in",
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "."}]}],
    (Image.new("RGB", (32, 32)),),
)
"""Is asked in place of what cannot be, so that all ranks are in step; with an image, for some templates drop all else."""


@dataclass
class PromptBatch:
    """Prompts for ``generate``.

    Args:
        source: the name of their set.
        indices: which prompts of the set these are.
        counts: False where the answer is to be thrown away: the prompt is repeated so that all ranks have equally many
            batches, or stands in for one that cannot be used.
        inputs: ``input_ids`` and ``attention_mask`` (B, T) int64, padded on the left; ``pixel_values`` (P, 3 * p * p) uint8 and
            ``image_grid_hw`` (N, 2) int64 where there are images.
        max_new_tokens: length of the longest answer.
        errors: why prompts of this batch could not be used, by their index; each begins with the key of the sample.
        template: how they were written; None: the processor's own.
    """

    source: str
    indices: list[int]
    counts: list[bool]
    inputs: dict[str, Tensor]
    max_new_tokens: int
    errors: dict[int, str]
    template: TemplateName | None = None


def share_prompts(lengths: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1) -> list[Row]:
    """The batches of one rank, longest prompts first: little padding, and what does not fit in memory fails at once.

    All ranks get equally many batches, as sharded models need; each prompt counts on one rank only.

    Args:
        lengths: tokens of each prompt.
        batch_size: prompts of a batch.
        rank: whose batches.
        world_size: number of ranks.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    rows = []
    for start in range(0, len(order), batch_size * world_size):
        step = order[start : start + batch_size * world_size]
        own = np.array_split(step, world_size)[rank]
        rows.append([(int(index), True) for index in own] or [(int(step[0]), False)])
    return rows


def prompt_loader(
    samples: Sequence[Sample],
    rows: Sequence[Row],
    processor: EveProcessor,
    template: TemplateName | None = None,
    max_new_tokens: int = 64,
    num_workers: int = 0,
    source: str = "prompts",
) -> DataLoader:
    """A loader of :class:`PromptBatch`.

    Args:
        samples: conversations that end with the user's turn, and their images.
        rows: the batches (:func:`share_prompts`).
        processor: makes prompts.
        template: how conversations are written, instead of the processor's own.
        max_new_tokens: length of the longest answer.
        num_workers: processes that read and resize images; 0 reads in this one.
        source: the name of the set.
    """
    return DataLoader(
        _Prompts(samples, processor, template, max_new_tokens, source),
        batch_sampler=rows,
        collate_fn=_as_it_is,
        num_workers=num_workers,
    )


class _Prompts(Dataset):
    def __init__(
        self,
        samples: Sequence[Sample],
        processor: EveProcessor,
        template: TemplateName | None,
        max_new_tokens: int,
        source: str,
    ) -> None:
        self.samples = samples
        self.processor = processor
        self.template = template
        self.max_new_tokens = max_new_tokens
        self.source = source

    def __getitems__(self, row: Row) -> PromptBatch:
        indices, counts = [index for index, _ in row], [own for _, own in row]
        samples, errors = [self.samples[index] for index in indices], {}
        try:
            inputs = self._inputs(samples)
        except SampleError:  # of a broken image; find it, and answer the others
            for place, sample in enumerate(samples):
                try:
                    self._inputs([sample])
                except SampleError as error:
                    errors[indices[place]] = str(error)
                    samples[place], counts[place] = STAND_IN, False
            inputs = self._inputs(samples)
        return PromptBatch(self.source, indices, counts, inputs, self.max_new_tokens, errors, self.template)

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        features = self.processor(
            images=[list(sample.images) for sample in samples],
            conversation=[sample.conversation for sample in samples],
            template=self.template,
            keys=[sample.key for sample in samples],
        )
        return dict(features)


def _as_it_is(batch: PromptBatch) -> PromptBatch:
    return batch
