"""Names of the Hugging Face hub become folders."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lit_eve.errors import not_found

_SIDE_FILES = ["*.json", "*.model", "*.txt"]
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # one kind is enough


def local_folder(name: str | Path, key: str) -> Path:
    """The folder ``name``, or where the hub's entry of that name lies; it is downloaded if it is not in the cache.

    Args:
        key: the setting that holds the name, for error messages.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such entry or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        for pattern in _WEIGHTS:
            folder = Path(snapshot_download(str(name), allow_patterns=[*_SIDE_FILES, pattern]))
            if any(folder.glob(pattern)):
                break
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise not_found(key, name, "folder or entry of the hub", error) from error
    return folder
