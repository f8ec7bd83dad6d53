"""Settings from YAML files, and work that is done once: what every step of the miniature world shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically

Settings = TypeVar("Settings")
DONE = "done.json"


def read_settings(settings: type[Settings], path: str | Path, **overrides: Any) -> Settings:
    """The dataclass ``settings`` with the values of a YAML file, then those of ``overrides`` ("scenes.counts": [1, 2]).

    Raises:
        ConfigError: a key that does not exist or a value of the wrong kind; the message names the key.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(settings, as_group=False)
    try:
        config = parser.parse_path(path)
        for key, value in overrides.items():
            config = parser.parse_object({key: value}, namespace=config)
        return settings(**vars(parser.instantiate(config)))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: {error}") from error


def is_done(folder: Path, settings: Any) -> bool:
    """Whether `mark_done` was called for this folder.

    Raises:
        ConfigError: it was, with other settings than these.
    """
    path = folder / DONE
    if not path.exists():
        return False
    made_with, wanted = json.loads(path.read_text())["settings"], json.loads(json.dumps(asdict(settings)))
    if made_with != wanted:
        keys = sorted(key for key in made_with.keys() | wanted.keys() if made_with.get(key) != wanted.get(key))
        raise ConfigError(f"{folder} was made with other settings ({', '.join(keys)}): remove it or choose another run folder")
    return True


def mark_done(folder: Path, settings: Any, results: Mapping[str, Any] | None = None) -> None:
    """Write that ``folder`` is complete, with the settings that made it and its ``results``; all or nothing."""
    write_atomically(folder / DONE, json.dumps({"settings": asdict(settings), "results": dict(results or {})}, indent=2) + "\n")


def results_of(folder: Path) -> dict[str, Any]:
    """What `mark_done` wrote as results."""
    return json.loads((folder / DONE).read_text())["results"]
