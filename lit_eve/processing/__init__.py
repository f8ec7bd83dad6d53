"""A photo and a conversation become numbers: geometry, patches, templates, label spans, ``EveProcessor``."""

from __future__ import annotations

from lit_eve.processing.geometry import ImageGeometry

__all__ = ["ImageGeometry"]
