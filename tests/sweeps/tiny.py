"""An ablation of a world that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.nano.test_pipeline import write_config

ARMS: dict[str, Any] = {
    "with": {},
    "without": {"1_prealign": {"model.teacher": None, "model.aligner": None}, "2_pretrain": {"model.teacher": None}},
}
METRICS = {"caption_loss": {"better": "lower", "difference": 0.1}, "2_pretrain/val/language_loss": {"better": "lower"}}


def write_ablation(folder: Path, **content: Any) -> Path:
    """``folder/question.yaml``, and a tiny recipe beside it in ``folder/recipe``."""
    if not (folder / "recipe").exists():
        write_config(folder / "recipe")
    content = {
        "base": "recipe",
        "stages": ["1_prealign", "2_pretrain"],
        "reference": "without",
        "arms": ARMS,
        "seeds": 1,
        "metrics": METRICS,
    } | content
    path = folder / "question.yaml"
    text = yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    path.write_text(f"# Does a teacher help?\n{text}")
    return path
