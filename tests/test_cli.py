from __future__ import annotations

import io
import subprocess
import sys

import pytest

from lit_eve import __version__
from lit_eve.bars import show_long_bars_only
from lit_eve.cli import COMMANDS, main


@pytest.mark.parametrize("args", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_no_torch(args: list[str]) -> None:
    code = (
        f"import sys; from lit_eve.cli import main\ntry: main({args})\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.strip() == "False"
    assert all(name in done.stdout for name in (COMMANDS if args == ["--help"] else args[:1]))


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0 and __version__ in capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["fly"], ["chat"], ["chat", "--modle", "x"]])
def test_unusable_arguments_exit_with_2(args: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2 and "usage: lit-eve" in capsys.readouterr().err


def test_bars_appear_for_long_work_in_a_terminal_only() -> None:
    from transformers.utils import logging

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = logging.set_tqdm_hook(None)
    try:
        show_long_bars_only()
        for file, options, shown in (
            (Terminal(), {}, False),
            (Terminal(), {"delay": 1e-9}, True),
            (io.StringIO(), {"delay": 1e-9}, False),
        ):
            assert list(logging.tqdm(range(3), desc="Loading weights", file=file, **options)) == [0, 1, 2]
            assert ("Loading weights" in file.getvalue()) == shown
    finally:
        logging.set_tqdm_hook(before)
