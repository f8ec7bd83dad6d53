"""``lit-eve chat``: ask a model about images in the terminal, once or in a conversation."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from lit_eve.demo.options import add_device_options
from lit_eve.errors import LitEveError
from lit_eve.files import local_path, path_argument

LEAVING = ("/quit", "/exit", "quit", "exit")

if TYPE_CHECKING:
    from PIL import Image

    from lit_eve.demo.session import ChatSession

HELP = """\
/image FILE   show an image with the next question: a path (Tab completes it), a URL, or a file dropped here
/save FILE    write the conversation and its images as LLaVA JSON, which lit-eve pack reads
/reset        forget the conversation and its images
/help         this list
/quit         leave (also /exit, Ctrl-D)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve chat`` takes."""
    parser.add_argument("question", nargs="?", help="answer this question and exit; without it, a conversation starts")
    parser.add_argument(
        "--model",
        required=True,
        type=path_argument,
        help="run folder, transformers folder, Lightning checkpoint, or official EVE checkpoint",
    )
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="path or URL of an image; repeatable")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="maximum answer length in tokens (default: %(default)s)"
    )
    add_device_options(parser)
    parser.add_argument("--stats", action="store_true", help="print the length and speed of each answer, on stderr")
    sampling = parser.add_argument_group("sampling", "without these options, decoding is greedy")
    sampling.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="flatten (above 1) or sharpen (below 1) the distribution; 0: greedy decoding",
    )
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely tokens that together have this probability"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    sampling.add_argument("--seed", type=int, help="the same seed gives the same answers")


def run(args: argparse.Namespace) -> None:
    """Answer the question, or talk until the user leaves."""
    # Read when torch is loaded: where others use the cores as well, threads that wait must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _check(args)
    _tolerate_other_encodings()
    images = [_load(file) for file in args.image]  # before the model: a wrong path should not cost minutes
    session = _open(args)
    for image in images:
        session.add_image(image)
    if args.question is not None:
        _answer(session, args.question, args.stats)
    else:
        _talk(session, args.stats)


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before the model is loaded."""
    if args.temperature is not None and not 0 <= args.temperature < float("inf"):
        raise LitEveError(f"--temperature must be a number of at least 0, got {args.temperature}")
    for name, low, high in (("top_p", 0, 1), ("top_k", 0, float("inf"))):
        value = getattr(args, name)
        if value is not None and not low < value <= high:
            bound = f" and at most {high}" if high == 1 else ""
            raise LitEveError(f"--{name.replace('_', '-')} must be above {low}{bound}, got {value}")
    if args.seed is not None and not -(2**63) <= args.seed < 2**63:
        raise LitEveError(f"--seed must be a whole number of 64 bits, got {args.seed}")
    if args.max_new_tokens < 1:
        raise LitEveError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    if args.question is not None:
        from lit_eve.demo.session import check_question

        check_question(args.question)


def _tolerate_other_encodings() -> None:
    """Let bytes through that the terminal's encoding does not know: a line or a file name of them ends no conversation."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def _open(args: argparse.Namespace) -> ChatSession:
    import torch

    import lit_eve
    from lit_eve.demo.session import ChatSession, usable_device

    if args.seed is not None:
        torch.manual_seed(args.seed)
    model, processor = lit_eve.load(args.model, device=usable_device(args.device), dtype=args.dtype)
    sampling = {key: value for key in ("temperature", "top_p", "top_k") if (value := getattr(args, key)) is not None}
    if args.temperature == 0:
        sampling = {}
    elif sampling or args.seed is not None:
        sampling["do_sample"] = True
    return ChatSession(model, processor, args.max_new_tokens, **sampling)


def _load(file: str) -> Image.Image:
    """The image of a path or URL; what comes from another machine is held to the limits of the web demo.

    Raises:
        SampleError: it cannot be had, is too large, or no image.
    """
    from lit_eve.demo.web.pictures import LIMITS
    from lit_eve.processing.images import load_image
    from lit_eve.processing.sources import describe, download

    if not file[:8].lower().startswith(("http://", "https://")):
        return load_image(file)
    name = describe(file)
    return load_image(download(file, name, LIMITS.bytes), name, max_pixels=LIMITS.pixels)


def _answer(session: ChatSession, question: str, stats: bool = False) -> None:
    """Print the answer while it is generated, and how fast it was where that is wanted."""
    from transformers import TextStreamer

    times: list[float] = []

    class Timed(TextStreamer):
        def put(self, value: Any) -> None:  # the prompt, then each token
            times.append(time.perf_counter())
            super().put(value)

    start = time.perf_counter()
    session.ask(question, Timed(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True))
    if stats:  # not among what is printed: that is the answer
        print(speed([moment - start for moment in times[1:]]), file=sys.stderr)


def speed(moments: Sequence[float]) -> str:
    """A line about the tokens of an answer.

    Args:
        moments: when each of them was there, in seconds since the question.
    """
    count, first, last = len(moments), moments[0], moments[-1]
    tokens = f"{count} token{'s' * (count != 1)}"
    return f"({tokens} in {last:.2f} s: {count / max(last, 1e-9):.1f} tokens/s; the first after {first:.2f} s)"


def _talk(session: ChatSession, stats: bool) -> None:
    from torch import OutOfMemoryError

    if sys.stdin.isatty():
        from lit_eve.demo.completion import complete_paths

        complete_paths()  # and line editing and history in input()
        print("Ask about the image, or type /help.\n")
    while True:
        try:
            line = input("you: " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            if line.lower() in LEAVING:
                return
            if line.startswith("/"):
                _command(session, line)
            elif files := _dropped(line):
                _show(session, *files)
            elif line:
                _answer(session, line, stats)
        except (LitEveError, MemoryError, OutOfMemoryError) as error:
            print(f"error: {str(error) or type(error).__name__}")
        except KeyboardInterrupt:
            print("\n(stopped; this turn is forgotten)")


def _command(session: ChatSession, line: str) -> None:
    """Do what a line that begins with a slash says."""
    name, _, argument = line.partition(" ")
    if name == "/image":
        _show(session, argument.strip())
    elif name == "/save":
        _save(session, argument.strip())
    elif name == "/reset":
        session.reset()
        print("(a new conversation)")
    elif name == "/help":
        print(HELP, end="")
    elif files := _dropped(line):
        _show(session, *files)
    else:
        print(f"unknown command {line!r}\n{HELP}", end="")


def _show(session: ChatSession, *arguments: str) -> None:
    files = [file for argument in arguments for file in written_files(argument)]
    if not files:
        raise LitEveError("/image needs the path or the URL of an image")
    for file in files:
        image = session.add_image(_load(file))
        print(f"({file}: {image.width} x {image.height}, comes with your next question)")


def _save(session: ChatSession, argument: str) -> None:
    files = written_files(argument)
    if len(files) != 1:
        raise LitEveError("/save needs the name of one file, such as talk.json")
    from lit_eve.demo.saving import save_conversation

    file = Path(local_path(files[0]))
    images = save_conversation(session.messages, file)
    turns = len(session.messages) // 2
    print(f"({file}: {turns} turn{'s' * (turns != 1)}, {images} image{'s' * (images != 1)})")


def written_files(text: str) -> list[str]:
    """The files that a line names as people or terminals write them: as they are, in quotes, or with escaped blanks.

    Several files may be dropped at once; a line is read as several only if each of them is there.
    """
    if not text or _exists(text):
        return [text] if text else []
    try:
        pieces = shlex.split(text)
    except ValueError:  # an apostrophe is no quote
        return [text]
    return pieces if len(pieces) == 1 or all(map(_exists, pieces)) else [text]


def _dropped(line: str) -> list[str]:
    """The files that a line is, where it is nothing else: dropped into the terminal without a command."""
    if not line.startswith(("/", "'", '"', "~/", "file://")):
        return []
    files = written_files(line)
    return files if all(map(_exists, files)) else []


def _exists(file: str) -> bool:
    if file.startswith("file://"):
        file = unquote(urlsplit(file).path)
    return os.path.exists(os.path.expanduser(file))
