"""``lit-eve convert``: between official EVE checkpoints and transformers folders of lit_eve; adapters into weights."""

from __future__ import annotations

import argparse

from lit_eve.errors import ConfigError
from lit_eve.files import path_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve convert`` takes."""
    parser.add_argument(
        "source",
        type=path_argument,
        help="official checkpoint, transformers folder, run folder, or hub name (BAAI/EVE-7B-v1.0)",
    )
    parser.add_argument("output", type=path_argument, help="the folder to write; it appears when the conversion is complete")
    parser.add_argument(
        "--to", choices=["lit_eve", "official"], help="layout to write (default: the one that SOURCE does not have)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="672 or 1344 (EVE v2: 800 or 1600), if an official checkpoint does not say it",
    )
    parser.add_argument(
        "--tokenizer",
        type=path_argument,
        metavar="FOLDER",
        help="the tokenizer, if SOURCE has none; to official EVE v1: a folder with tokenizer.model, which that code reads",
    )
    parser.add_argument("--teacher", type=path_argument, metavar="FOLDER", help="to official: include the weights of this CLIP")
    parser.add_argument(
        "--merge", action="store_true", help="add the adapters of a lit_eve model to its weights, in place of a conversion"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is the folder of a model")


def run(args: argparse.Namespace) -> None:
    """Convert, and say what was done."""
    from lit_eve.models.checkpoints.conversion import convert
    from lit_eve.models.checkpoints.export_merged import export_merged

    common = {"tokenizer": args.tokenizer, "max_shard_size": args.max_shard_size, "overwrite": args.overwrite}
    official = {"to": args.to, "image_size": args.image_size, "teacher": args.teacher}
    if args.merge:
        if unused := [key.replace("_", "-") for key, value in official.items() if value is not None]:
            raise ConfigError(f"--{unused[0]} has no meaning beside --merge")
        result = export_merged(args.source, args.output, **common)
    else:
        result = convert(args.source, args.output, **common, **official, progress=True)
    print(f"{result.num_weights} weights, {result.num_bytes / 1e9:.2f} GB, in the layout {result.layout!r}: {args.output}")
    if result.dropped:
        print(f"left out: {len(result.dropped)} weights of the frozen CLIP teacher, which is read from its own folder")
    for note in result.notes:
        print(f"note: {note}")
