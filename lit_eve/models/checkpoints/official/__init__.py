"""Layouts of official checkpoints: one entry for each code base whose models lit_eve reads and writes.

A new one is a subclass of :class:`OfficialLayout` in a file of its own, and an instance of it in :data:`LAYOUTS`.
"""

from __future__ import annotations

from typing import Any

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.official.base import PREPROCESSOR, OfficialLayout
from lit_eve.models.checkpoints.official.eve_v1 import EveV1Layout
from lit_eve.models.checkpoints.official.eve_v2 import EveV2Layout
from lit_eve.models.config import EveConfig

__all__ = ["LAYOUTS", "PREPROCESSOR", "EveV1Layout", "EveV2Layout", "OfficialLayout", "layout_for", "layout_of", "titles"]

LAYOUTS: tuple[OfficialLayout, ...] = (EveV1Layout(), EveV2Layout())


def layout_of(config: dict[str, Any]) -> OfficialLayout | None:
    """The official layout that a config.json is of; None for any other."""
    return next((layout for layout in LAYOUTS if layout.matches(config)), None)


def layout_for(config: EveConfig) -> OfficialLayout:
    """The official layout that may express an architecture, which its patch embedding decides.

    Raises:
        CheckpointError: no official code has such a patch embedding.
    """
    name = config.patch_embedding["name"]
    for layout in LAYOUTS:
        if layout.patch_embedding == name:
            return layout
    known = " or ".join(repr(layout.patch_embedding) for layout in LAYOUTS)
    raise CheckpointError(f"no official code has a model with patch_embedding.name = {name!r}, only {known}")


def titles() -> str:
    """Whose checkpoints can be read, in words."""
    return " or ".join(layout.title for layout in LAYOUTS)
