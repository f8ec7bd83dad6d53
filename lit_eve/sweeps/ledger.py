"""``ledger.json``: which version of an ablation a folder belongs to, and how its trials stand.

What is finished is known task by task from the folder itself (lit_eve/sweeps/trials.py). The ledger says it for people, keeps
why trials failed, and notices that the file has changed since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically
from lit_eve.nano.steps import changes
from lit_eve.sweeps.ablation import Ablation
from lit_eve.sweeps.recipe import Recipe
from lit_eve.sweeps.trials import Trial

FILE, FORMAT = "ledger.json", 1


class Ledger:
    """The ledger of a sweep.

    Args:
        output: folder of the sweep.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / FILE
        self.content: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.content = json.loads(self.path.read_text("utf-8"))
            except ValueError as error:
                raise ConfigError(f"{self.path} is no ledger: {error}") from error
            if self.content.get("format") != FORMAT:
                raise ConfigError(f"{self.path} was written by another version of lit_eve; --output names another folder")

    def take(self, ablation: Ablation, recipe: Recipe) -> list[str]:
        """Make this version of the file the folder's. What was found out about costs is forgotten where it is another one.

        Returns:
            What differs from the version that the folder was begun with.
        """
        now = version_of(ablation, recipe)
        different = _differences(self.content["version"], now) if self.content else []
        if different:
            for found_out in ("scaled", "flops_per_step"):
                self.content.pop(found_out, None)
        self.content |= {"format": FORMAT, "ablation": str(ablation.path), "version": now}
        return different

    @property
    def scaled(self) -> dict[str, dict[str, int]]:
        """Steps that make arms equal, by arm and stage, of the arms for which they were found out."""
        return self.content.get("scaled", {})

    def write(self, trials: Sequence[Trial], failed: Mapping[str, str], scaled: Mapping[str, Any] | None = None) -> None:
        """Write how all trials stand.

        Args:
            failed: why, by the name of a task.
            scaled: steps that make arms equal.
        """
        states = self.content.get("trials", {})
        for trial in trials:
            why = next((failed[task.name] for task in trial.tasks.values() if task.name in failed), None)
            tasks = {kind: task.name for kind, task in trial.tasks.items()}
            states[trial.name] = {"state": "failed" if why else "finished" if trial.is_done else "unfinished", "tasks": tasks}
            if why:
                states[trial.name]["why"] = why
        self.content["trials"] = states
        if scaled is not None:
            self.content["scaled"] = scaled
        write_atomically(self.path, json.dumps(self.content, indent=2) + "\n")


def version_of(ablation: Ablation, recipe: Recipe) -> dict[str, Any]:
    """What of a file, and of the recipe that it changes, decides what trials are."""
    files = {stage.name: stage.files for stage in recipe.stages}
    arms = {
        arm.name: {"changes": dict(arm.changes), "skipped": list(arm.skipped), "seed_offset": arm.seed_offset}
        for arm in ablation.arms
    }
    version = {"arms": arms, "recipe": files, "equal": ablation.equal, "scaled": ablation.scaled}
    if ablation.equal != "steps":
        version["reference"] = ablation.reference
    return json.loads(json.dumps(version))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, without arms that are new or left out: these affect no other."""
    common = old["arms"].keys() & new["arms"].keys()
    return list(changes(*({**one, "arms": {name: one["arms"][name] for name in sorted(common)}} for one in (old, new))))
