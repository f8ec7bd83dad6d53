"""Answers to many questions: prompts of like length together, in left-padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.progress import track

from lit_eve.data import prompt_loader, share_prompts
from lit_eve.errors import SampleError
from lit_eve.models.generation.asking import generate_answers
from lit_eve.processing.sample import IMAGE_PLACEHOLDER, Sample
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


class Query(NamedTuple):
    """Something to answer.

    Args:
        images: files, bytes or PIL images, in the order of their places.
        question: a text, or a conversation that ends with the user's turn. Images whose places (``<image>``) are not in
            the text stand before it.
        name: what error messages call it; None: its index.
    """

    images: Sequence[ImageSource]
    question: str | Sequence[Mapping[str, Any]]
    name: str | None = None

    @property
    def conversation(self) -> list[Mapping[str, Any]]:
        """The messages, with a place for every image."""
        if not isinstance(self.question, str):
            return list(self.question)
        if IMAGE_PLACEHOLDER in self.question or not self.images:
            return [{"role": "user", "content": self.question}]
        content = [*({"type": "image"} for _ in self.images), {"type": "text", "text": self.question}]
        return [{"role": "user", "content": content}]


def answer_all(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    queries: Sequence[Query | tuple[Sequence[ImageSource], str]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    template: str | Mapping[str, Any] | None = None,
    progress: str | None = "answering",
    **generation: Any,
) -> list[str]:
    """One answer per query, in their order.

    Prompts are sorted by length, the longest first: little padding, and what does not fit in memory fails at once. How queries
    are batched does not change greedy answers.

    Args:
        model: in eval mode.
        queries: (images, question) pairs.
        batch_size: prompts per call of ``generate``.
        max_new_tokens: length of the longest answer.
        template: how conversations are written, instead of the processor's own.
        progress: title of the progress bar; None: no bar.
        **generation: further arguments of ``generate``: ``do_sample=True, temperature=0.7``. Greedy without.

    Raises:
        SampleError: a query that cannot be used, by its name or index.
    """
    queries = [Query(*query) for query in queries]
    samples = [Sample(query.name or f"query {i}", query.conversation, query.images) for i, query in enumerate(queries)]
    rows = share_prompts(checked_lengths(processor, samples, template), batch_size)
    loader = prompt_loader(samples, rows, processor, template, max_new_tokens)
    answers = [""] * len(queries)
    for batch in track(loader, progress or "", disable=progress is None):
        if batch.errors:
            raise SampleError(next(iter(batch.errors.values())))
        texts = generate_answers(model, processor, batch.inputs, max_new_tokens, template, **generation)
        for index, answer in zip(batch.indices, texts, strict=True):
            answers[index] = answer
    return answers


def checked_lengths(
    processor: EveProcessor,
    samples: Sequence[Sample],
    template: str | Mapping[str, Any] | None = None,
    with_labels: bool = False,
) -> list[int]:
    """Tokens of each sample; arguments as in ``processor.count_tokens``.

    Raises:
        SampleError: a sample that cannot be used.
    """
    lengths = processor.count_tokens_batch(samples, template=template, with_labels=with_labels)
    for length in lengths:
        if isinstance(length, SampleError):
            raise length
    return lengths
