"""The errors that lit_eve raises on purpose; each message names the key, file or sample it is about."""

from __future__ import annotations


class LitEveError(ValueError):
    """Base class: something given to lit_eve cannot be used."""


class ConfigError(LitEveError):
    """A setting that is unknown, contradictory or of the wrong kind."""


class CheckpointError(LitEveError):
    """A folder or file that is no checkpoint, or one of another architecture."""


class SampleError(LitEveError):
    """One training sample that cannot be used; the data pipeline skips, counts and lists it."""
