"""Layouts of official checkpoints: one entry for each code base whose models lit_eve reads; EVE's are written as well.

A new one is a subclass of :class:`OfficialLayout` in a file of its own, and an instance of it in :data:`LAYOUTS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.checkpoints.official.base import OfficialLayout
from lit_eve.models.checkpoints.official.eve import PREPROCESSOR, EveLayout
from lit_eve.models.checkpoints.official.eve_v1 import EveV1Layout
from lit_eve.models.checkpoints.official.eve_v2 import EveV2Layout
from lit_eve.models.checkpoints.official.fuyu import FuyuLayout
from lit_eve.models.checkpoints.official.llava import LlavaLayout
from lit_eve.models.config import EveConfig

__all__ = [
    "LAYOUTS",
    "PREPROCESSOR",
    "EveLayout",
    "EveV1Layout",
    "EveV2Layout",
    "FuyuLayout",
    "LlavaLayout",
    "OfficialLayout",
    "layout_for",
    "layout_in",
    "layout_of",
    "titles",
]

LAYOUTS: tuple[OfficialLayout, ...] = (EveV1Layout(), EveV2Layout(), FuyuLayout(), LlavaLayout())


def layout_of(config: dict[str, Any]) -> OfficialLayout | None:
    """The official layout that a config.json is of; None for any other."""
    return next((layout for layout in LAYOUTS if layout.matches(config)), None)


def layout_in(folder: Path) -> OfficialLayout | None:
    """The official layout of the weights in a folder; None where config.json is of another.

    Raises:
        CheckpointError: the folder lacks what tells more of the layout than config.json.
    """
    layout = layout_of(read_json(folder / "config.json"))
    return None if layout is None else layout.bound_to(folder)


def layout_for(config: EveConfig) -> EveLayout:
    """The official layout that may express an architecture, which its patch embedding decides.

    Raises:
        CheckpointError: no official code has such a patch embedding.
    """
    name = config.patch_embedding["name"]
    written = {layout.patch_embedding: layout for layout in LAYOUTS if isinstance(layout, EveLayout)}
    if name not in written:
        known = " or ".join(map(repr, written))
        raise CheckpointError(f"no official checkpoint can be written of patch_embedding.name = {name!r}, only {known}")
    return written[name]


def titles() -> str:
    """Whose checkpoints can be read, in words."""
    *others, last = (layout.title for layout in LAYOUTS)
    return f"{', '.join(others)} or {last}"
