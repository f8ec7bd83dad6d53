"""The ``lit-eve`` command.

A subcommand is a module with ``add_arguments(parser)`` and ``run(args)``, and a line in ``COMMANDS``; it is imported when it
is called. One that joins several folders stands in this one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from lit_eve import __version__
from lit_eve.bars import show_long_bars_only
from lit_eve.errors import LitEveError
from lit_eve.imports import import_own

COMMANDS = {
    "nano": ("lit_eve.nano.pipeline", "train and evaluate a miniature EVE from scratch, on any machine"),
    "pack": ("lit_eve.cli.pack", "pack annotation files and images into training shards"),
    "plan": ("lit_eve.cli.plan", "estimate what a training run costs: memory, FLOPs, steps and days"),
    "compare": ("lit_eve.cli.compare", "compare runs: settings that differ, metrics, cost and curves"),
    "sweep": ("lit_eve.cli.sweep", "run an ablation, arms x seeds, and report what came out, with statistics"),
    "chat": ("lit_eve.demo.chat", "ask a trained model about images"),
    "demo": ("lit_eve.cli.demo", "open a web page to ask trained models about images"),
    "serve": ("lit_eve.cli.serve", "start an OpenAI-compatible server, images included"),
    "evaluate": ("lit_eve.cli.evaluate", "score a model on the ten benchmarks of the EVE papers"),
    "convert": ("lit_eve.cli.convert", "convert an official EVE checkpoint to lit_eve, or back"),
}
USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code: 0, or 2 when something given to lit_eve cannot be used; that is said without a traceback.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="lit-eve", description="Encoder-free vision-language models on PyTorch Lightning.")
    parser.add_argument("--version", action="version", version=f"lit-eve {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in argv[:1]:
            import_module(module).add_arguments(subparser)
            subparser.add_argument(
                "--import",
                action="append",
                default=[],
                dest="imports",
                metavar="MODULE",
                help="import your own module, by name or as a .py file, so that what it registers can be used; repeatable",
            )
    args = parser.parse_args(argv)
    show_long_bars_only()
    try:
        import_own(args.imports)
        import_module(COMMANDS[args.command][0]).run(args)
    except LitEveError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        print(f"lit-eve {args.command}: " + "\n".join(filter(None, lines)), file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    return 0
