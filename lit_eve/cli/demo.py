"""``lit-eve demo``: a web page on which models are asked about images, and show where they looked."""

from __future__ import annotations

import argparse
from itertools import count
from typing import TYPE_CHECKING

from lit_eve.cli.model_server import LOOPBACK, add_server_arguments, announce, limits_of, load_models, prepare, until_stopped

if TYPE_CHECKING:
    from PIL import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve demo`` takes."""
    add_server_arguments(parser, port=7860, images_of="question")


def run(args: argparse.Namespace) -> None:
    """Load the models, and serve the page until Ctrl-C or SIGTERM."""
    names = prepare(args)

    from lit_eve.demo.address import check_address
    from lit_eve.demo.web.server import require_gradio, serve_page

    check_address(args.host, args.port)  # before minutes of loading
    require_gradio()
    models = load_models(args, names)
    stopped = until_stopped()
    with serve_page(
        models,
        examples(),
        host=args.host,
        port=args.port,
        limits=limits_of(args),
        batch_size=args.batch_size,
        max_waiting=args.queue,
    ) as url:
        announce(models, url)
        if args.host not in LOOPBACK:
            print("Whoever reaches this machine can use it: there is no password.", flush=True)
        stopped.wait()


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
