"""The command line of ``train.py``."""

from lit_eve.training.cli.command import EveCLI, main, quiet

__all__ = ["EveCLI", "main", "quiet"]
