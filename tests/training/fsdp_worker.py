"""Runs several trainings one after the other in every process of a ``torchrun``: jobs.json holds their command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lit_eve.training.cli import EveCLI

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        EveCLI(args=arguments)
