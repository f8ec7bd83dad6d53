"""Scores that papers report, for tables beside one's own: EVE, arXiv 2406.11832, table 3."""

from __future__ import annotations

NAMES = ("vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seedbench", "mmvet")

_ROWS: dict[str, tuple[float | None, ...]] = {
    "EVE-7B": (75.4, 60.8, 41.8, 63.0, 51.9, 83.6, 1217.3, 49.5, 54.3, 25.6),
    "EVE-7B (HD)": (78.6, 62.6, 51.1, 64.9, 56.8, 85.0, 1305.7, 52.3, 56.8, 25.7),
    "Fuyu-8B (HD)": (74.2, None, None, None, None, 74.1, 728.6, 10.7, None, 21.4),
    "LLaVA-1.5 7B": (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 58.6, 30.5),
    "LLaVA-1.6 7B (HD)": (81.8, 64.2, 57.6, 70.1, 64.9, 86.5, 1519.3, 67.4, 64.7, 43.9),
}

PUBLISHED: dict[str, dict[str, float | None]] = {model: dict(zip(NAMES, row, strict=True)) for model, row in _ROWS.items()}
"""Model -> benchmark -> score, None where none is reported. SEED is of images and videos together."""
