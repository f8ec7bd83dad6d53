"""What ``lit-eve demo`` and ``lit-eve serve`` share: arguments, models by name, limits, and the end by a signal."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.demo.options import add_device_options
from lit_eve.errors import ConfigError
from lit_eve.files import path_argument

if TYPE_CHECKING:
    from lit_eve.demo.web.pictures import Limits
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor

    Models = dict[str, tuple[EveForConditionalGeneration, EveProcessor]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_server_arguments(parser: argparse.ArgumentParser, port: int, images_of: str) -> None:
    """What all commands take that let others ask models.

    Args:
        port: the default.
        images_of: what ``--max-images`` limits the images of.
    """
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        type=path_argument,
        metavar="PATH",
        help="run folder, transformers folder, Lightning checkpoint, or official EVE checkpoint; repeatable",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="use 0.0.0.0 to accept connections from other machines (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=port, help="port of the server (default: %(default)s)")
    add_device_options(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="answers that each model writes at the same time (default: %(default)s)",
    )
    limits.add_argument(
        "--queue", type=int, default=64, metavar="N", help="maximum number of waiting questions (default: %(default)s)"
    )
    limits.add_argument(
        "--max-megabytes",
        type=float,
        default=10,
        metavar="N",
        help="maximum file size of an image, in MB (default: %(default)s)",
    )
    limits.add_argument(
        "--max-megapixels",
        type=float,
        default=40,
        metavar="N",
        help="maximum number of pixels of an image, in millions (default: %(default)s)",
    )
    limits.add_argument(
        "--max-images",
        type=int,
        default=8,
        metavar="N",
        help=f"maximum number of images per {images_of} (default: %(default)s)",
    )


def prepare(args: argparse.Namespace) -> list[str]:
    """Check the limits, and let threads sleep that wait, before torch is loaded; gives the models' names.

    Raises:
        ConfigError: a limit that is none, or a model that is given twice.
    """
    for name in ("batch_size", "queue", "max_megabytes", "max_megapixels", "max_images"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")
    # Read when torch is loaded. Its threads share the cores with those that serve: those that wait must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return names_of(args.model)


def load_models(args: argparse.Namespace, names: Sequence[str]) -> Models:
    """Model and processor by name."""
    import lit_eve
    from lit_eve.demo.session import usable_device

    device = usable_device(args.device)
    return {name: lit_eve.load(path, device=device, dtype=args.dtype) for name, path in zip(names, args.model, strict=True)}


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits of images."""
    from lit_eve.demo.web.pictures import Limits

    return Limits(int(args.max_megabytes * 2**20), int(args.max_megapixels * 1e6), args.max_images)


def until_stopped() -> threading.Event:
    """Is set by SIGTERM; Ctrl-C is a KeyboardInterrupt of whoever waits."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    return stopped


def announce(models: Models, url: str) -> None:
    """Say what is served where."""
    device = next(iter(models.values()))[0].device
    print(f"{', '.join(models)} on {device}: {url}  (Ctrl-C ends it)", flush=True)


def names_of(paths: Sequence[str]) -> list[str]:
    """What models are called: their folder's name, that of the run for its ``model``; in full where two are alike.

    Raises:
        ConfigError: a model is given twice.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError("--model names the same model twice")
    short = [Path(path).parent.name if Path(path).name == "model" else Path(path).name for path in paths]
    return [name if name and short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]
