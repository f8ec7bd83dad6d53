"""How likely given answers are, for multiple choice without generation.

Legend: B rows, T tokens, K tokens of the longest answer of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from lit_eve.data import share_prompts
from lit_eve.evaluation.generation import Query, checked_lengths
from lit_eve.processing.inputs import pad_rows
from lit_eve.processing.sample import Sample
from lit_eve.processing.tokenize import IGNORE

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor
    from lit_eve.processing.processor import TemplateName


class AnswerScore(NamedTuple):
    """What the model thinks of an answer.

    Args:
        log_prob: natural logarithm of the answer's probability after its question: the sum over its tokens. The token that
            would end the turn is not counted.
        is_greedy: greedy decoding would write these tokens.
    """

    log_prob: float
    is_greedy: bool


@torch.no_grad()
def score_answers(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    queries: Sequence[Query],
    answers: Sequence[str],
    *,
    batch_size: int = 16,
    template: TemplateName | None = None,
    progress: str | None = "scoring",
) -> list[AnswerScore]:
    """Score one answer for each query, in their order. Pairs are sorted by length, the longest first.

    Args:
        model: in eval mode.
        queries: what is asked.
        answers: without outer blanks; those between question and answer are the template's.
        batch_size: pairs per forward pass.
        template: how conversations are written, instead of the processor's own.
        progress: title of the progress bar; None: no bar.

    Raises:
        SampleError: a query that cannot be used, or an empty answer, named by the query's name or index.
    """
    samples = [
        Sample(query.name or f"query {index}", [*query.conversation, _message(answer)], query.images)
        for index, (query, answer) in enumerate(zip(queries, answers, strict=True))
    ]
    lengths = checked_lengths(processor, samples, template, with_labels=True)
    batches = [[index for index, _ in row] for row in share_prompts(lengths, batch_size)]
    scores = [AnswerScore(0.0, True)] * len(samples)
    for batch in track(batches, progress or "", disable=progress is None):
        rows = [_encode(processor, samples[index], template) for index in batch]
        for index, score in zip(batch, _score(model, rows), strict=True):
            scores[index] = score
    return scores


def _message(answer: str) -> dict[str, object]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}


def _encode(processor: EveProcessor, sample: Sample, template: TemplateName | None) -> dict[str, Tensor]:
    """A sample whose last token is the last one of its answer, and the only answer that is labelled."""
    row = processor.encode_sample(sample, template)
    ids, labels = row["input_ids"], row["labels"]  # (T,) each
    supervised = (labels != IGNORE).nonzero()[:, 0]
    ends = supervised[ids[supervised] == processor.answer_end(template).token]  # none: "plain" ends a caption with a newline
    end = int(ends[-1]) if len(ends) else int(supervised[-1]) + 1
    start = int((labels[:end] == IGNORE).nonzero()[-1]) + 1
    return {**row, "input_ids": ids[:end], "labels": torch.where(torch.arange(end) < start, IGNORE, labels[:end])}


def _score(model: EveForConditionalGeneration, rows: Sequence[dict[str, Tensor]]) -> list[AnswerScore]:
    padded = pad_rows([row["input_ids"].tolist() for row in rows], 0)
    input_ids, mask = (torch.tensor(padded[key], device=model.device) for key in ("input_ids", "attention_mask"))  # (B, T)
    width = max(int((row["labels"] != IGNORE).sum()) for row in rows)  # K
    targets = pad_rows([row["labels"][-width:].tolist() for row in rows], IGNORE)["input_ids"]
    targets = torch.tensor(targets, device=model.device)  # (B, K)
    images = {key: torch.cat([row[key] for row in rows]).to(model.device) for key in ("pixel_values", "image_grid_hw")}
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),  # (B, T)
        logits_to_keep=width + 1,
        use_cache=False,
        **images,
    ).logits[:, :-1]  # (B, K, V): each position predicts the next token
    counted = targets != IGNORE  # (B, K)
    chosen = targets.masked_fill(~counted, 0)[..., None]  # (B, K, 1)
    log_probs = logits.float().log_softmax(-1).gather(-1, chosen)[..., 0]  # (B, K)
    totals = log_probs.masked_fill(~counted, 0).sum(1)  # (B,)
    logits[..., model.generation_config.suppress_tokens or []] = -torch.inf  # what greedy decoding does not choose from
    greedy = ((logits.argmax(-1) == targets) | ~counted).all(1)  # (B,)
    return [AnswerScore(*pair) for pair in zip(totals.tolist(), greedy.tolist(), strict=True)]
