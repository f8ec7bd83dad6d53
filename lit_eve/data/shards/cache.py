"""What is computed once per shard and kept: small files of arrays, valid for one state of the tar.

They lie beside the shard in ``.lit_eve/<shard>.<name>.npz``, or, where that cannot be written, in a folder of the user's cache
(``$LIT_EVE_CACHE``, else ``~/.cache/lit_eve``). Each holds the size and the time of change of its tar.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

FORMAT = 2


def _state(shard: Path) -> np.ndarray:
    """(3,) int64 that change whenever the tar does."""
    status = shard.stat()
    return np.array([FORMAT, status.st_size, status.st_mtime_ns], np.int64)


def _places(shard: Path, name: str) -> list[Path]:
    """Where the file may lie, the best place first."""
    user = Path(os.environ.get("LIT_EVE_CACHE") or Path.home() / ".cache" / "lit_eve")
    folder = hashlib.sha256(os.fsencode(shard.parent)).hexdigest()[:16]
    return [place / f"{shard.stem}.{name}.npz" for place in (shard.parent / ".lit_eve", user / folder)]


def load_arrays(shard: Path, name: str, *keys: str) -> dict[str, np.ndarray] | None:
    """What was kept under ``name`` for this state of the shard; None when there is nothing, or it is broken.

    Args:
        keys: only these arrays; none named means all.
    """
    for place in _places(shard, name):
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(place) as file:
            if np.array_equal(file["state"], _state(shard)):
                return {key: file[key] for key in keys or file.files if key != "state"}
    return None


def is_kept(shard: Path, name: str) -> bool:
    """Whether something is kept under ``name`` for this state of the shard."""
    return load_arrays(shard, name, "state") is not None


def save_arrays(shard: Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays for this state of the shard. The file appears at once or not at all, whoever else writes it too.

    Raises:
        OSError: none of the places can be written.
    """
    places = _places(shard, name)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".tmp", delete=False) as file:
                np.savez(file, state=_state(shard), **arrays)
            os.chmod(file.name, 0o644)
            os.replace(file.name, place)
            return
        except OSError:
            if place == places[-1]:
                raise


def strings_to_array(strings: list[str]) -> np.ndarray:
    """Texts as uint8, so that no pickle is needed to read them back."""
    return np.frombuffer(json.dumps(strings).encode(), np.uint8)


def array_to_strings(array: np.ndarray) -> list[str]:
    return json.loads(array.tobytes())
