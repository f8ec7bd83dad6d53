"""A POPE in the official files, small enough for any test, and a model of random weights that answers it."""

from __future__ import annotations

import json
from pathlib import Path

from lit_eve.nano.world.questions import questions
from lit_eve.nano.world.scenes import draw, sample_scene
from tests.tiny_model import make_tiny

PARTS = ("random", "popular", "adversarial")


def make_pope(data: Path, count: int = 7) -> Path:
    """``data/pope`` with so many questions in each of the three parts."""
    folder = data / "pope"
    for name in ("coco", "val2014"):
        (folder / name).mkdir(parents=True)
    for part in PARTS:
        lines = []
        for number in range(count):
            scene, image = sample_scene(f"{part}/{number}"), f"COCO_val2014_{part}_{number:04d}.jpg"
            draw(scene).save(folder / "val2014" / image, quality=95)
            asked = next(q for q in questions(scene, "exist") if (q.answer == "yes") == bool(number % 2))
            row = {"question_id": number + 1, "image": image, "text": asked.text, "label": asked.answer}
            lines.append(json.dumps(row) + "\n")
        (folder / "coco" / f"coco_pope_{part}.json").write_text("".join(lines))
    return data


def make_model(folder: Path, seed: int = 3) -> Path:
    """A transformers folder."""
    model, processor = make_tiny(seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def best_score(benchmark: str) -> float:
    """All questions answered right."""
    return 2000.0 if benchmark == "mme" else 100.0
