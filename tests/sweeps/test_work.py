"""The process of a task: alone, with its log, ended with whoever called it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_eve.nano.steps import Journal, Step
from lit_eve.sweeps.work import Order, TaskError, carry_out


def nothing() -> None:
    """What the step does by itself."""


def order(folder: Path, code: str) -> Order:
    step = Step("task", "task", folder / "task", {}, nothing)
    return Order(step, folder / "steps", folder / "logs" / "task.txt", (sys.executable, "-u", "-c", code), 3, str(folder))


def test_a_process_with_its_log_its_threads_and_its_time(tmp_path: Path) -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.getcwd()); open('task/made', 'a').write('x')"
    made = order(tmp_path, code)
    carry_out(made)
    carry_out(made)  # is done
    assert (tmp_path / "task" / "made").read_text() == "x" and made.log.read_text() == f"3 {tmp_path}\n"
    journal = Journal(made.journal)
    assert journal.is_done(made.step) and journal.seconds(made.step) > 0 and journal.core_seconds(made.step) > 0
    shutil.rmtree(tmp_path / "task")
    carry_out(made)  # what is gone is made again
    assert (tmp_path / "task" / "made").read_text() == "x"


def test_a_task_that_fails_says_how_with_the_end_of_its_log(tmp_path: Path) -> None:
    made = order(tmp_path, "print('\\n'.join(map(str, range(100)))); raise SystemExit(3)")
    with pytest.raises(TaskError, match=r"task ended with 3\n70\n71\n") as raised:
        carry_out(made)
    assert str(raised.value).endswith("99") and not Journal(made.journal).is_done(made.step)
    with pytest.raises(TaskError, match="task was killed by SIGKILL"):
        carry_out(order(tmp_path, "import os; os.kill(os.getpid(), 9)"))


def test_a_full_disk_is_noticed_before_a_task_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e8))
    with pytest.raises(TaskError, match=r"task: the disk has 0.2 GB left, and a task begins with 1 GB or more"):
        carry_out(order(tmp_path, ""))
    assert not (tmp_path / "logs" / "task.txt").exists()


APART = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    command = [*APART, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which(APART[0])) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="a small disk cannot be mounted here")
def test_a_disk_that_becomes_full_is_the_reason(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from lit_eve.sweeps import work
from tests.sweeps.test_work import order
work.SPARE_GB, folder = 0.0, Path({str(tmp_path)!r})
for size in (4_000_000, 1_000_000):
    writing = f"open('task/big', 'wb').write(bytes({{size}})); print('written')"
    try:
        work.carry_out(order(folder, writing))
    except work.TaskError as error:
        print(error)
    (folder / "task" / "big").unlink()
print((folder / "logs" / "task.txt").read_text().splitlines()[-1])
"""
    mounted = f"mount -t tmpfs -o size=2m tmpfs {tmp_path} && exec {sys.executable} -c {shlex.quote(code)}"
    done = subprocess.run([*APART, "sh", "-c", mounted], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert "its disk is full" in first or "No space left on device" in first
    assert last == "written"  # with room again, it goes on


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an orphan ends by itself")
def test_a_killed_caller_takes_its_process_along_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    slow_end = """
import signal, sys, time
def end(*_):
    time.sleep(1.5); open('task/log', 'a').write('saved '); sys.exit(1)
signal.signal(signal.SIGTERM, end)
open('task/log', 'a').write('begun '); time.sleep(60)
"""
    caller = f"""
from pathlib import Path
from tests.sweeps.test_work import order
from lit_eve.sweeps.work import carry_out
carry_out(order(Path({str(tmp_path)!r}), {slow_end!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=Path(__file__).parents[2])
    log = tmp_path / "task" / "log"
    deadline = time.monotonic() + 100
    while not (log.exists() and log.read_text() == "begun "):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    carry_out(order(tmp_path, "open('task/log', 'a').write('again')"))
    assert log.read_text() == "begun saved again"


def test_two_sweeps_do_one_task_once(tmp_path: Path) -> None:
    made = order(tmp_path, "import time; time.sleep(0.5); open('task/log', 'a').write('once ')")
    both = [threading.Thread(target=carry_out, args=[made]) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert (tmp_path / "task" / "log").read_text() == "once "
