"""Tab completes the paths that commands of ``lit-eve chat`` take."""

from __future__ import annotations

import glob
import os

from lit_eve.processing.formats import IMAGE_EXTENSIONS

ENDINGS = {"/image": tuple(f".{extension}" for extension in IMAGE_EXTENSIONS), "/save": (".json",)}
"""Which files each command takes."""


def complete_paths() -> None:
    """Let readline complete paths behind the commands, and edit lines; nothing where Python was built without it."""
    try:
        import readline
    except ImportError:
        return

    def complete(text: str, state: int) -> str | None:
        found = completions(readline.get_line_buffer()[: readline.get_endidx()])
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")


def completions(line: str) -> list[str]:
    """What may stand in place of the last word of a line: names of folders, and of files that its command takes.

    Paths with blanks are several words, of which the last one is completed.
    """
    command, blank, path = line.partition(" ")
    if not blank:
        return [name + " " for name in ENDINGS if line and name.startswith(line)]
    if command not in ENDINGS:
        return []
    home = os.path.expanduser(path)
    found = []
    for name in sorted(glob.glob(glob.escape(home) + "*")):
        if os.path.isdir(name):
            name += "/"
        elif not name.lower().endswith(ENDINGS[command]):
            continue
        found.append((path + name[len(home) :])[path.rfind(" ") + 1 :])
    return found
