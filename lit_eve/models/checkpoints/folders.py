"""Where a model lies: a folder, the ``model`` folder of a run, or a name on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_eve.errors import CheckpointError
from lit_eve.files import local_path

# An owner and a name, as in BAAI/EVE-7B-v1.0.
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SIDE_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_WEIGHTS = ("*.safetensors", "*.bin")  # one kind is enough


def find_model_folder(path: str | Path) -> Path:
    """``path``, the ``model`` folder of the run in ``path``, or the local copy of the hub's model of that name.

    A hub name is looked up only where there is no such path; what is missing of it is downloaded.

    Raises:
        CheckpointError: there is no config.json in either, or the hub has no such model or cannot be reached.
    """
    path = Path(local_path(path))
    if is_hub_name(path):
        path = _download(str(path))
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    what = "holds no config.json, nor does its folder 'model'"
    if not path.is_dir():
        what = "is a file, no folder" if path.exists() else "is no folder"
    raise CheckpointError(f"{path} {what}: no run, transformers folder or official EVE checkpoint")


def read_json(path: Path) -> dict[str, Any]:
    """Parse the object of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return content


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Raise a CheckpointError if ``target`` exists and ``overwrite`` was not asked for, or if it is no model's folder."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{target} exists already; remove it, or ask for --overwrite (overwrite=True)")
    if not (target / "config.json").is_file():
        raise CheckpointError(f"{target} holds no config.json: it is no model's folder and is not overwritten")


def is_hub_name(path: str | Path) -> bool:
    """Whether ``path`` can only be a name on the hub: an owner and a name, and nothing of that name is here."""
    path = Path(path)
    return not path.exists() and _HUB_NAME.fullmatch(str(path)) is not None and not path.parent.exists()


@contextmanager
def replace_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``target`` as a whole when the block ends well.

    Until then ``target`` stays as it is; after an error nothing is left of the new folder.

    Raises:
        CheckpointError: as in :func:`check_replaceable`.
    """
    part, old = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # killed between the two renames below
        os.replace(old, target)
    check_replaceable(target, overwrite)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        for pattern in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*_SIDE_FILES, pattern]))
            if any(folder.glob(pattern)):
                break
        return folder
    except RepositoryNotFoundError as error:  # also what the hub answers about a private model
        raise CheckpointError(
            f"{name} is neither a folder here nor a model on the Hugging Face hub that can be read without signing in"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:  # OSError: what the hub's client raises without a connection
        raise CheckpointError(
            f"{name} is no folder here, the Hugging Face hub cannot be reached, and its cache holds no copy: "
            f"download it where there is a network (hf download {name}), and give the path of its folder"
        ) from error
