"""``lit-eve serve``: models behind OpenAI's protocol, for whatever speaks it."""

from __future__ import annotations

import argparse
import os

from lit_eve.cli.model_server import LOOPBACK, add_server_arguments, announce, limits_of, load_models, prepare, until_stopped
from lit_eve.errors import ConfigError

KEY_VARIABLE = "LIT_EVE_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve serve`` takes."""
    add_server_arguments(parser, port=8000, images_of="request, over all its turns")
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key that clients must send; set {KEY_VARIABLE} instead to keep it out of process lists (default: no key)",
    )
    access.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="download images from http(s) URLs in requests, from public addresses only (default: refuse them)",
    )


def run(args: argparse.Namespace) -> None:
    """Load the models, and serve them until Ctrl-C or SIGTERM."""
    key = os.environ.get(KEY_VARIABLE) if args.api_key is None else args.api_key
    if key is not None and not (key.strip() == key != "" and key.isascii() and key.isprintable()):
        raise ConfigError(f"--api-key (or {KEY_VARIABLE}) must be of printable ASCII characters, without blanks around them")
    names = prepare(args)

    from lit_eve.demo.address import listen
    from lit_eve.demo.api.images import ImageReader
    from lit_eve.demo.api.server import require_server, serve_endpoint

    require_server()
    with listen(args.host, args.port) as listener:  # before minutes of loading
        models = load_models(args, names)
        reader = ImageReader(limits_of(args), args.allow_remote_images)
        stopped = until_stopped()
        with serve_endpoint(models, listener, reader, key=key, batch_size=args.batch_size, max_waiting=args.queue) as url:
            announce(models, url)
            if args.host not in LOOPBACK and key is None:
                print("Whoever reaches this machine can use it: no key is asked for (--api-key).", flush=True)
            stopped.wait()
