"""lit_eve as a model of lmms-eval: ``lmms-eval --model lit_eve --model_args pretrained=PATH --tasks ...``.

lmms-eval finds :func:`manifest` by the entry point of the group ``lmms_eval.models`` in pyproject.toml. Nothing else of lit_eve
imports lmms-eval, and nothing needs it to be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """The name of the model and the paths of its classes, which are imported once somebody asks for it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    adapter = f"{__name__}.adapter"
    return ModelManifest("lit_eve", simple_class_path=f"{adapter}.LitEveSimple", chat_class_path=f"{adapter}.LitEveChat")
