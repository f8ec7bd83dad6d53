"""What the miniature EVE can do on scenes that no training set holds, next to what can be done without looking."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch.utils.data import DataLoader

import lit_eve
from lit_eve.data import EveDataModule, model_inputs, read_samples
from lit_eve.evaluation import AnswerAccuracy, answer_all, token_accuracy
from lit_eve.files import write_atomically
from lit_eve.nano.world.questions import TYPES
from lit_eve.processing import EveProcessor, Sample, load_image
from lit_eve.processing.sample import IMAGE_PLACEHOLDER

ANSWERS = "answers.jsonl"
RESULTS = "results.json"
MAX_NEW_TOKENS = 8


def evaluate(run: Path, captioner: str = "2_pretrain", batch_size: int = 64) -> dict[str, Any]:
    """Evaluate ``run/model`` on the test questions, and the model of the stage ``captioner`` on the test captions.

    Five numbers are shares of test questions answered right: by the model; by the model with the image of another question
    (``shuffled``); and three ways of not looking, the best of which is ``blind``:

    - ``no_image``: the model, given the question alone.
    - ``blank_image``: the model, given an image of the right size in the mean colour.
    - ``majority``: the answer that is most frequent in the training set of stage 3 for a question of the very same words. As
      there are few different questions and many of each, no model that learns them without images can do better but by luck.

    Writes ``results.json`` and, with every question and all answers to it, ``answers.jsonl`` to ``run/evaluation``.

    Returns:
        What is in ``results.json``.
    """
    model, processor = lit_eve.load(run / "model")
    samples = list(read_samples(run / "data" / "test_questions"))
    questions = [question_of(sample) for sample in samples]
    expected = [sample.metadata["answer"] for sample in samples]
    types = [sample.metadata["type"] for sample in samples]
    images = [[load_image(image) for image in sample.images] for sample in samples]
    half = len(samples) // 2
    seen = {
        "model": images,
        "shuffled": images[half:] + images[:half],
        "no_image": [[] for _ in images],
        "blank_image": [[_blank(image, processor) for image in row] for row in images],
    }
    answers = {
        name: answer_all(
            model,
            processor,
            list(zip(rows, questions, strict=True)),
            batch_size=batch_size,
            max_new_tokens=MAX_NEW_TOKENS,
            progress=f"questions ({name.replace('_', ' ')})",
        )
        for name, rows in seen.items()
    }
    answers["majority"] = majority_answers(read_samples(run / "data" / "finetune"), questions)
    lines = [
        {"id": sample.key, "type": type, "question": question, "expected": right, **{name: a[i] for name, a in answers.items()}}
        for i, (sample, type, question, right) in enumerate(zip(samples, types, questions, expected, strict=True))
    ]
    write_atomically(run / "evaluation" / ANSWERS, "".join(json.dumps(line) + "\n" for line in lines))

    scores: dict[str, AnswerAccuracy] = {name: AnswerAccuracy(TYPES) for name in answers}
    for name, score in scores.items():
        score.update(answers[name], expected, types)
    overall = {name: int(score.correct.sum()) / len(samples) for name, score in scores.items()}
    baselines = {name: overall[name] for name in ("majority", "no_image", "blank_image")}
    blind = max(baselines, key=baselines.__getitem__)
    by_type = {
        type: {"accuracy": row["accuracy"], "blind": _of(scores[blind], type), "shuffled": _of(scores["shuffled"], type)}
        | {"count": row["count"]}
        for type, row in scores["model"].by_type().items()
    }
    captions = caption_accuracy(run / captioner, run / "data")
    results = {
        "question_accuracy": overall["model"],
        "blind_accuracy": overall[blind],
        "shuffled_accuracy": overall["shuffled"],
        "caption_accuracy": captions["accuracy"],
        "caption_loss": captions["loss"],
        "by_type": by_type,
        "baselines": baselines,
        "questions": len(samples),
    }
    write_atomically(run / "evaluation" / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def caption_accuracy(model_path: Path, data_path: Path) -> dict[str, float]:
    """Token accuracy and loss of a model on the test captions of a world.

    Args:
        model_path: what `lit_eve.load` takes; the model after stage 2 wrote captions last.
        data_path: folder of the world's data sets.
    """
    model, processor = lit_eve.load(model_path)
    return token_accuracy(model, _test_captions(processor, data_path))


@torch.no_grad()
def captions_by_word(
    model_path: Path, data_path: Path, kinds: Mapping[str, Collection[str]], *, progress: str | None = "words of captions"
) -> dict[str, Any]:
    """What `caption_accuracy` returns, and the mean loss by kind of word (``loss_by_word``).

    Args:
        model_path: what `lit_eve.load` takes.
        data_path: folder of the world's data sets.
        kinds: words of each kind; a word of none is of the kind "other".
        progress: title of the progress bar; None: no bar.
    """
    model, processor = lit_eve.load(model_path)
    kind_of = {word: kind for kind, words in kinds.items() for word in words}
    names = [*kinds, "other"]
    tokenizer = processor.tokenizer
    words = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    kind_of_token = torch.tensor([names.index(kind_of.get(word, "other")) for word in words])
    total, count, correct = torch.zeros(3, len(names), dtype=torch.double)
    for batch in track(_test_captions(processor, data_path), progress or "", disable=progress is None):
        inputs = model_inputs(batch)
        positions, labels = inputs.pop("target_positions"), inputs.pop("labels")
        logits = model(**inputs).logits.flatten(0, 1)[positions].float()  # (M, V)
        targets = labels.flatten()[positions + 1]  # (M,)
        losses = F.cross_entropy(logits, targets, reduction="none").double()
        right = (logits.argmax(-1) == targets).double()
        for sums, values in ((total, losses), (count, torch.ones_like(losses)), (correct, right)):
            sums.index_add_(0, kind_of_token[targets], values)
    return {
        "accuracy": (correct.sum() / count.sum()).item(),
        "loss": (total.sum() / count.sum()).item(),
        "loss_by_word": dict(zip(names, (total / count).tolist(), strict=True)),
    }


def _test_captions(processor: EveProcessor, data_path: Path) -> DataLoader:
    data = EveDataModule(test=str(data_path / "test_captions"), template="plain", max_tokens=896, rows=4, num_workers=0)
    data.attach(processor).prepare_data()
    data.setup("test")
    return data.test_dataloader()


def majority_answers(training: Iterable[Sample], questions: Sequence[str]) -> list[str]:
    """For each question the answer that training samples give most often to the same words; nothing if they never ask it."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        turns = [message["value"].replace(IMAGE_PLACEHOLDER, "").strip() for message in sample.conversation]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            counts[question][answer] += 1
    return [counts[question].most_common(1)[0][0] if question in counts else "" for question in questions]


def question_of(sample: Sample) -> str:
    """The words of a single question, without the place of its image."""
    return sample.conversation[0]["value"].replace(IMAGE_PLACEHOLDER, "").strip()


def _blank(image: Image.Image, processor: EveProcessor) -> Image.Image:
    return Image.new("RGB", image.size, tuple(round(255 * value) for value in processor.image_mean))


def _of(score: AnswerAccuracy, type: str) -> float:
    return score.by_type()[type]["accuracy"]
