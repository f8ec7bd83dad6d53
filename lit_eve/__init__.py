"""lit_eve: encoder-free vision-language models (EVE and its successors) on PyTorch Lightning.

The names below are loaded on first use, so that ``import lit_eve`` itself stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "EveConfig": "lit_eve.models",
    "EveForConditionalGeneration": "lit_eve.models",
    "EveProcessor": "lit_eve.processing",
    "ImageGeometry": "lit_eve.processing",
    "LitEve": "lit_eve.training",
    "load": "lit_eve.models",
}
__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from lit_eve.models import EveConfig, EveForConditionalGeneration, load
    from lit_eve.processing import EveProcessor, ImageGeometry
    from lit_eve.training import LitEve


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lit_eve' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
