"""YAML files that are laid over others: a file names the one that it changes under its key ``base``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_eve.errors import ConfigError
from lit_eve.files import local_path

KEY = "base"
IMPORTS, MODEL_CLASS = "imports", "model_class"
_OPTIONS = ("--config", "-c")


def config_first(arguments: Sequence[str]) -> list[str]:
    """Every ``--config FILE`` in front of the settings, which change what is in the files wherever they stand."""
    files, others = [], []
    rest = iter(arguments)
    for argument in rest:
        option, joined, _ = argument.partition("=")
        target = files if option in _OPTIONS else others
        target.append(argument)
        if option in _OPTIONS and not joined and (value := next(rest, None)) is not None:
            target.append(value)
    return [*others[:1], *files, *others[1:]] if others and not others[0].startswith("-") else [*files, *others]


def with_bases(arguments: Sequence[str]) -> list[str]:
    """Put in front of every ``--config FILE`` the files that it is laid over, the lowest first.

    Raises:
        ConfigError: a file that does not exist or is no YAML, a base that leads back to a file above it, or one that is named
            outside of a file.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, joined, value = argument.partition("=")
        if option == f"--{KEY}":
            raise _in_files_only()
        if option not in _OPTIONS or not (joined or (value := next(rest, ""))):
            expanded.append(argument)
            continue
        if value.lstrip()[:1] == "{":  # settings, no file
            if _content(value).get(KEY) is not None:
                raise _in_files_only()
            expanded += ["--config", value]
            continue
        for path in files_of(Path(local_path(value, "--config"))):
            expanded += ["--config", str(path)]
    return expanded


def _in_files_only() -> ConfigError:
    return ConfigError(f"{KEY} is a key of YAML files: on the command line, give both files with --config")


def own_code(arguments: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """What the arguments, and the files that they name, say about the user's own code.

    Args:
        arguments: from :func:`with_bases`.

    Returns:
        The arguments with one ``--imports`` for all that is to be imported, in front of anything else of the kind; the names of
        those modules, of files that lie over others after theirs; and the name of the model's class, or None.

    Raises:
        ConfigError: one of these keys holds something else than names.
    """
    kept: list[str] = []
    names: list[str] = []
    model_class = None
    rest = iter(arguments)
    for argument in rest:
        option, joined, value = argument.partition("=")
        if option in ("--import", f"--{IMPORTS}", f"--{IMPORTS}+"):
            value = value if joined else next(rest, "")
            names += _names(value if option == "--import" else _parsed(value, option), option)
            continue
        kept.append(argument)
        if option not in (*_OPTIONS, f"--{MODEL_CLASS}"):
            continue
        if not joined:
            kept.append(value := next(rest, ""))
        if option == f"--{MODEL_CLASS}":
            model_class = None if value == "null" else value
            continue
        content = _content(value)
        names += _names(content.get(IMPORTS), f"{value}: {IMPORTS}")
        model_class = content.get(MODEL_CLASS, model_class)
    names = list(dict.fromkeys(names))
    return kept + ([f"--{IMPORTS}={json.dumps(names)}"] if names else []), names, model_class


def _names(value: Any, where: str) -> list[str]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where} takes names of modules, as in [my_module], got {value!r}")
    return names


def _parsed(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} is no YAML: {' '.join(str(error).split())}") from error


def _content(config: str) -> dict[str, Any]:
    """What a YAML says, a file or the text itself; nothing where it cannot be read, which the parser says better."""
    try:
        content = yaml.safe_load(config if config.lstrip()[:1] == "{" else Path(config).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def files_of(path: Path) -> list[Path]:
    """A YAML file and those that it is laid over, the lowest first.

    Raises:
        ConfigError: one does not exist, is no YAML, or leads back to a file above it.
    """
    return _with_bases(path, ())


def _with_bases(path: Path, above: tuple[Path, ...]) -> list[Path]:
    name = f"{above[-1]}: its base {path}" if above else f"--config {path}"
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be read: {reason}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{name} holds no settings")
    base = (content or {}).get(KEY)
    if base is None:
        return [path]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a YAML file, got {base!r}")
    below = Path(local_path(base, f"{path}: base", path.parent))
    if below.resolve() in [file.resolve() for file in (*above, path)]:
        raise ConfigError(f"{path}: its base {base} leads back to itself")
    return [*_with_bases(below, (*above, path)), path]
