"""TextVQA: questions about text in images, which an OCR system has read too (Singh et al. 2019, arXiv 1904.08920)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, read_entries, read_lines
from lit_eve.evaluation.benchmarks.people import ten_answers

FILES = "https://dl.fbaipublicfiles.com/textvqa"
LLAVA = "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy: LLaVA's eval.zip, folder textvqa"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
PROMPTS = "llava_textvqa_val_v051_ocr.jsonl"
ANNOTATION_KEYS = {"question_id": int, "image_id": str, "question": str, "answers": list}
PROMPT_KEYS = {"question_id": str, "image": str, "text": str}


class TextVQA(Benchmark):
    """Ids are those of the annotations. In LLaVA's and EVE's files an id is that of the image, which the fields hold."""

    name = "textvqa"
    title = "TextVQA"
    sources = (
        Source(ANNOTATIONS, "3 MB", f"{FILES}/data/{ANNOTATIONS}"),
        Source(PROMPTS, "1.5 MB", LLAVA),
        Source("train_images", "7 GB, with the images of train", f"{FILES}/images/train_val_images.zip"),
    )
    splits = ("val",)
    sizes = {"val": 5000}
    metric_class = metrics.TextVQA

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """Prompts are matched with annotations by image and question; of two annotations the last one's answers count."""
        waiting: dict[tuple[str, str], deque[tuple[int, str]]] = {}
        answers_of: dict[tuple[str, str], tuple[str, ...]] = {}
        for _, place, row in read_entries(folder / ANNOTATIONS, ANNOTATION_KEYS, problems, "data"):
            if answers := ten_answers(row, place, problems):
                key = (row["image_id"], row["question"].lower())
                waiting.setdefault(key, deque()).append((row["question_id"], place))
                answers_of[key] = answers
        for place, row in read_lines(folder / PROMPTS, PROMPT_KEYS, problems):
            question = question_of(row["text"])
            key = (row["question_id"], (question or "").lower())
            if question is None:
                problems.note(
                    place, "the prompt has none of the known layouts: 'text' must be the question, the OCR tokens, ..."
                )
            elif not waiting.get(key):
                problems.note(place, f"{ANNOTATIONS} has no such question about image {row['question_id']}: {question}")
            else:
                yield Question(
                    id=waiting[key].popleft()[0],
                    prompt=row["text"],
                    images=(folder / "train_images" / row["image"],),
                    reference=answers_of[key],
                    place=place,
                    fields={"question_id": row["question_id"]},
                )
        for id, place in (entry for entries in waiting.values() for entry in entries):
            problems.note(place, f"{PROMPTS} has no prompt for question {id}")


def question_of(prompt: str) -> str | None:
    """The question in a prompt, in the layouts that eve/eval/eval_textvqa.py knows; None in others."""
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        return found and found[1]
    lines = prompt.split("\n")
    if "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0]
    return lines[0] if len(lines) == 2 else None
