"""Is a checkpoint one of this architecture? If not, say in which keys it differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lit_eve.errors import CheckpointError
from lit_eve.records import differences

if TYPE_CHECKING:
    from lit_eve.models import EveConfig
    from lit_eve.training.module import LitEve

# Keys that say nothing about the weights.
_IRRELEVANT = ("transformers_version", "_name_or_path", "architectures", "dtype", "teacher", "use_cache")
_SHOWN = 6


def is_irrelevant(line: str) -> bool:
    """Whether a line of :func:`differences` between two configs says nothing about the weights."""
    key = line.split(":")[0]
    return key.split(".")[-1] in _IRRELEVANT or key.startswith("imports")


def check_architecture(checkpoint: Mapping[str, Any], module: LitEve) -> None:
    """Compare the config and the weights of a Lightning checkpoint with those of ``module``, its own parts included.

    Raises:
        CheckpointError: they differ, or it is no checkpoint of LitEve.
    """
    from lit_eve.models.checkpoints.loading import ENTRY

    if ENTRY not in checkpoint:
        raise CheckpointError(f"this is no checkpoint of LitEve: it has no entry {ENTRY!r}")
    current = module.model.config
    saved = type(current).from_dict(json.loads(checkpoint[ENTRY]["config"]))  # an older one has fewer keys
    saved, current = (json.loads(config.to_json_string(use_diff=False)) for config in (saved, current))
    if keys := [line for line in differences(saved, current) if not is_irrelevant(line)]:
        raise CheckpointError(f"the checkpoint is of another architecture (checkpoint -> this run): {_some(keys)}")

    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = {key: tuple(value.shape) for key, value in checkpoint.get("state_dict", shapes).items()}
    if keys := differences(weights, shapes):
        raise CheckpointError(f"the checkpoint's weights are of another shape (checkpoint -> this run): {_some(keys)}")


def other_parts(old: EveConfig, new: EveConfig, keys: Iterable[str]) -> str:
    """The end of a sentence about weights that do not fit: in which of ``keys`` two configs differ; empty if in none."""
    lines = differences(*({key: getattr(config, key) for key in keys} for config in (old, new)))
    return f"; keys that are others than there: {_some(lines)}" if lines else ""


def _some(lines: list[str]) -> str:
    return "; ".join(lines[:_SHOWN]) + (f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")
