"""Packages of the extra ``eval``, which only some evaluations need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from lit_eve.errors import ConfigError


def require(package: str, purpose: str) -> ModuleType:
    """The package.

    Args:
        package: as it is imported.
        purpose: what needs it, in words that begin a sentence ("The judge").

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs the package {package}: .venv/bin/pip install -e '.[eval]' ({error})") from error
