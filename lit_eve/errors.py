"""The errors that lit_eve raises on purpose; each message names the key, file or sample it is about."""

from __future__ import annotations


class LitEveError(ValueError):
    """Base class: something given to lit_eve cannot be used."""


class ConfigError(LitEveError):
    """A setting that is unknown, contradictory or of the wrong kind."""


class StageError(ConfigError):
    """Rules of a stage that do not suit its model."""


class CheckpointError(LitEveError):
    """A folder or file that is no checkpoint, or one of another architecture."""


class SampleError(LitEveError):
    """One training sample that cannot be used; the data pipeline skips, counts and lists it."""


def check_sizes(key: str, **sizes: int) -> None:
    """Raise ConfigError for arguments of the part ``key`` that are no whole numbers of at least 1."""
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"{key}.{name} must be a whole number of at least 1, got {value!r}")


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def not_found(key: str, name: object, what: str, error: Exception) -> CheckpointError:
    """The sentence for a folder or hub name under which there is nothing usable.

    Args:
        key: the setting that holds the name ("model.decoder").
        what: what should be there ("causal language model").
        error: what was raised when it was looked for.
    """
    text = one_line(error)
    if "couldn't connect" in text or "offline" in text or "local_files_only" in text or "snapshot folder" in text:
        return CheckpointError(
            f"{key}: {str(name)!r} is no folder, is not in the Hugging Face cache, and the hub cannot be reached; download it "
            f"where there is a network (hf download {name}) and give its folder"
        )
    if "Repo id must" in text:  # no name that the hub could have
        return CheckpointError(f"{key}: there is no folder {str(name)!r}")
    return CheckpointError(f"{key}: {str(name)!r} is no {what}: {text}")
