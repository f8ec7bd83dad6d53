"""YAML files that are laid over others: a file names the one that it changes under its key ``base``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lit_eve.errors import ConfigError

KEY = "base"
_OPTIONS = ("--config", "-c")


def with_bases(arguments: Sequence[str]) -> list[str]:
    """Put in front of every ``--config FILE`` the files that it is laid over, the lowest first.

    Raises:
        ConfigError: a base that does not exist, is no YAML, or leads back to a file above it.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, joined, value = argument.partition("=")
        if option not in _OPTIONS or not (joined or (value := next(rest, ""))):
            expanded.append(argument)
            continue
        for path in [*_bases(Path(value), ()), value]:
            expanded += ["--config", str(path)]
    return expanded


def _bases(path: Path, above: tuple[Path, ...]) -> list[Path]:
    """The files below ``path``, the lowest first. A file that cannot be read is left to the parser, unless it is a base."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        if not above:
            return []
        raise ConfigError(f"{above[-1]}: its base {path} cannot be read: {error}") from error
    base = content.get(KEY) if isinstance(content, dict) else None
    if base is None:
        return []
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a YAML file, got {base!r}")
    below = path.parent / base
    if below.resolve() in [file.resolve() for file in (*above, path)]:
        raise ConfigError(f"{path}: its base {base} leads back to itself")
    return [*_bases(below, (*above, path)), below]
