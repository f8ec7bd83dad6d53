"""Work in a process beside this one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_eve.nano.pretrained.beside import beside

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


def write_pid(path: Path) -> None:
    print("at work")
    path.write_text(str(os.getpid()))


def write_pid_and_sleep(path: Path) -> None:
    write_pid(path)
    time.sleep(60)


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_both_are_over_at_the_end(tmp_path):
    with beside(tmp_path / "logs" / "log.txt", write_pid, tmp_path / "pid"):
        mine = os.getpid()
    assert int((tmp_path / "pid").read_text()) != mine
    assert (tmp_path / "logs" / "log.txt").read_text() == "at work\n"


def test_an_error_of_the_body_ends_the_work(tmp_path):
    with pytest.raises(ZeroDivisionError), beside(tmp_path / "log.txt", write_pid_and_sleep, tmp_path / "pid"):
        wait_for((tmp_path / "pid").exists)
        raise ZeroDivisionError
    assert not is_running(int((tmp_path / "pid").read_text() or 0))


def test_a_failure_of_the_work_is_left_to_the_next_call(tmp_path):
    with beside(tmp_path / "log.txt", write_pid, tmp_path / "missing" / "pid"):
        pass
    assert "FileNotFoundError" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_work_dies_with_a_killed_process(tmp_path):
    program = (
        "from pathlib import Path; import time\n"
        "from lit_eve.nano.pretrained.beside import beside\n"
        "from tests.nano.pretrained.test_beside import write_pid_and_sleep\n"
        "if __name__ == '__main__':\n"
        f"    with beside(Path({str(tmp_path)!r}) / 'log.txt', write_pid_and_sleep, Path({str(tmp_path)!r}) / 'pid'):\n"
        "        time.sleep(60)\n"
    )
    (tmp_path / "program.py").write_text(program)
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"], env={**os.environ, "PYTHONPATH": str(root)})
    try:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        assert is_running(pid := int((tmp_path / "pid").read_text()))
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not is_running(pid), 10)
