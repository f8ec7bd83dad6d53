"""The machine, the versions and the commit that numbers come from."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lit_eve

PACKAGES = ("torch", "lightning", "transformers")


@cache
def environment() -> dict[str, Any]:
    """``machine`` and ``versions``, among them ``commit``, with "+changes" where tracked files differ from it.

    It is found out once: what a process runs is what was there when it began.
    """
    import torch

    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = next(iter(models), cpu)
    machine = {
        "processor": cpu,
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }
    versions = {"lit_eve": lit_eve.__version__, "commit": commit(), "python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    return {"machine": machine, "versions": versions}


def commit() -> str | None:
    """The git commit of lit_eve's own files; None where they are no checkout."""
    folder = Path(lit_eve.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:  # it may lie in a checkout of another project
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{_git(folder, 'rev-parse', 'HEAD')}{'+changes' if changed else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
