"""``lit-eve demo``: a web page on which models are asked about images, and show where they looked."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError
from lit_eve.files import path_argument

if TYPE_CHECKING:
    from PIL import Image

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve demo`` takes."""
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        type=path_argument,
        metavar="PATH",
        help="run folder, transformers folder, Lightning checkpoint, or official EVE checkpoint; may be given several times",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="(%(default)s)")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="answers that a model writes at once (%(default)s)"
    )
    limits.add_argument("--queue", type=int, default=64, metavar="N", help="questions that may wait (%(default)s)")
    limits.add_argument("--max-megabytes", type=float, default=10, metavar="N", help="of an uploaded file (%(default)s)")
    limits.add_argument("--max-megapixels", type=float, default=40, metavar="N", help="of an uploaded image (%(default)s)")
    limits.add_argument("--max-images", type=int, default=8, metavar="N", help="of a question (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Load the models, and serve the page until Ctrl-C or SIGTERM."""
    for name in ("batch_size", "queue", "max_megabytes", "max_megapixels", "max_images"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")
    names = names_of(args.model)
    # Read when torch is loaded. Its threads share the cores with the page: those that wait must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from lit_eve.demo.web.server import check_address, require_gradio, serve

    check_address(args.host, args.port)  # before minutes of loading
    require_gradio()

    import lit_eve
    from lit_eve.demo.session import usable_device
    from lit_eve.demo.web.pictures import Limits

    device = usable_device(args.device)
    models = {name: lit_eve.load(path, device=device, dtype=args.dtype) for name, path in zip(names, args.model, strict=True)}
    limits = Limits(int(args.max_megabytes * 2**20), int(args.max_megapixels * 1e6), args.max_images)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with serve(
        models,
        examples(),
        host=args.host,
        port=args.port,
        limits=limits,
        batch_size=args.batch_size,
        max_waiting=args.queue,
    ) as url:
        print(f"{', '.join(models)} on {device}: {url}  (Ctrl-C ends it)", flush=True)
        if args.host not in LOOPBACK:
            print("Whoever reaches this machine can use it: there is no password.", flush=True)
        stopped.wait()


def names_of(paths: Sequence[str]) -> list[str]:
    """What models are called on the page: their folder's name, that of the run for its ``model``; in full where two are alike.

    Raises:
        ConfigError: a model is given twice.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError("--model names the same model twice")
    short = [Path(path).parent.name if Path(path).name == "model" else Path(path).name for path in paths]
    return [name if name and short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def examples() -> list[tuple[Image.Image, str]]:
    """Pictures of the miniature world, with a question each."""
    from lit_eve.nano.world.questions import questions
    from lit_eve.nano.world.scenes import draw, sample_scene

    found = []
    for number, kind in enumerate(("count", "colour", "exist_pair", "shape")):
        scenes = (sample_scene(f"demo/{number}/{index}") for index in count())
        scene, asked = next(
            (scene, asked) for scene in scenes if (asked := list(questions(scene, kind))) and len(scene.things) > 2
        )
        found.append((draw(scene), asked[0].text))
    return found
