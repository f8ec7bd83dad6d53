"""Where the heads of supervisions lie: each in a file of its own beside the weights of a model, which is free of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ALIGNER_FILE = "aligner.safetensors"


def part_of(name: str) -> str:
    """The name under which a model owns the head of a supervision."""
    return "aligner" if name == "patch_alignment" else name


def head_file(folder: str | Path, part: str) -> Path:
    """The file of a head in the folder of a model."""
    return Path(folder, f"{part}.safetensors")


def heads_in(supervision: Iterable[Mapping[str, Any]] | None) -> list[str]:
    """The heads that a model may have been saved with, by the ``supervision`` of its config: an aligner without it too."""
    return ["aligner", *(part for entry in supervision or () if (part := part_of(entry["name"])) != "aligner")]


def split_heads(weights: Mapping[str, T], parts: Iterable[str]) -> tuple[dict[str, T], dict[str, dict[str, T]]]:
    """The weights that are in no head, and those of each head that has any, without its name in front."""
    rest, heads = dict(weights), {}
    for part in parts:
        prefix = f"{part}."
        if head := {key.removeprefix(prefix): rest.pop(key) for key in list(rest) if key.startswith(prefix)}:
            heads[part] = head
    return rest, heads
