"""What an arm of an ablation can do on the test scenes of a miniature world, as numbers that can be compared.

    caption_loss, caption_accuracy          of the last stage that learns captions: mean over all words of the test captions
    looks_loss                              the same over words that say what things look like, each kind counting alike
    loss/colour, .../shape, .../size        its kinds
    loss/place                              words that say where things are: a skill of the language model, which comes late
    question_accuracy                       of the last stage, where it learns conversations: share answered right
    question_accuracy/colour, ...           the same by type of question

Questions and answers are written beside the numbers, with the image of each, for intervals over questions.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_eve.files import write_atomically
from lit_eve.nano.world.scenes import COLOURS, COLUMNS, ROWS, SHAPES, SIZES

LOOKS = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}
WORDS = {**LOOKS, "place": (*ROWS, *COLUMNS)}
ANSWERS, METRICS = "answers.jsonl", "metrics.json"


def measure(folder: Path, data: Path, captioner: Path | None, answerer: Path | None) -> dict[str, float]:
    """Write ``metrics.json`` and, with an answerer, ``answers.jsonl`` to ``folder``.

    Args:
        data: folder of the world's data sets.
        captioner: run folder of a stage that learned captions; None: captions are not measured.
        answerer: run folder of a stage that learned conversations; None: questions are not asked.

    Returns:
        The metrics.
    """
    metrics: dict[str, float] = {}
    if captioner is not None:
        from lit_eve.nano.evaluate import captions_by_word

        captions = captions_by_word(captioner, data, WORDS)
        by_word = {kind: loss for kind, loss in captions["loss_by_word"].items() if kind in WORDS}
        metrics |= {"caption_loss": captions["loss"], "caption_accuracy": captions["accuracy"]}
        metrics["looks_loss"] = fmean(by_word[kind] for kind in LOOKS)
        metrics |= {f"loss/{kind}": loss for kind, loss in by_word.items()}
    if answerer is not None:
        rows = _answers(answerer, data)
        write_atomically(folder / ANSWERS, "".join(json.dumps(row) + "\n" for row in rows))
        metrics["question_accuracy"] = fmean(row["right"] for row in rows)
        for kind in dict.fromkeys(row["type"] for row in rows):
            metrics[f"question_accuracy/{kind}"] = fmean(row["right"] for row in rows if row["type"] == kind)
    write_atomically(folder / METRICS, json.dumps({"metrics": metrics}, indent=2) + "\n")
    return metrics


def _answers(model_path: Path, data: Path) -> list[dict[str, Any]]:
    """Every test question with its answer; images are the same where their bytes are."""
    import hashlib

    import lit_eve
    from lit_eve.data import read_samples
    from lit_eve.evaluation import answer_all, normalize_answer
    from lit_eve.nano.evaluate import MAX_NEW_TOKENS, question_of
    from lit_eve.processing import load_image

    model, processor = lit_eve.load(model_path)
    samples = list(read_samples(data / "test_questions"))
    images = [[load_image(image) for image in sample.images] for sample in samples]
    questions = [question_of(sample) for sample in samples]
    answers = answer_all(
        model,
        processor,
        list(zip(images, questions, strict=True)),
        batch_size=64,
        max_new_tokens=MAX_NEW_TOKENS,
        progress="questions",
    )
    return [
        {
            "id": sample.key,
            "image": hashlib.sha256(b"".join(image.tobytes() for image in seen)).hexdigest()[:16],
            "type": sample.metadata["type"],
            "question": question,
            "expected": sample.metadata["answer"],
            "answer": answer,
            "right": normalize_answer(answer) == normalize_answer(sample.metadata["answer"]),
        }
        for sample, seen, question, answer in zip(samples, images, questions, answers, strict=True)
    ]
