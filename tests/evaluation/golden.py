"""Invented answers in the official formats, and what the official scorers made of them (tests/data/benchmarks)."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "data" / "benchmarks"


@cache
def golden(benchmark: str) -> dict[str, Any]:
    """``inputs`` and ``expected`` of a benchmark."""
    return json.loads((FOLDER / f"{benchmark}.json").read_text())


def inputs(benchmark: str) -> dict[str, Any]:
    return golden(benchmark)["inputs"]


def expected(benchmark: str) -> dict[str, Any]:
    return golden(benchmark)["expected"]


def rounded(value: float, digits: int = 2) -> float:
    """Half away from zero, as under Python 2, which the older scorers run on."""
    return float(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
