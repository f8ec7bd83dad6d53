"""What is read from the folders of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_eve.errors import ConfigError
from lit_eve.sweeps.gathering import seconds_per_step
from lit_eve.sweeps.trials import Task


def task(folder: Path, rows: list[tuple[int, float | None]]) -> Task:
    made = Task("2_pretrain", 0, folder, {})
    made.folder.mkdir(parents=True)
    lines = [f"{step},{'' if seconds is None else seconds}\n" for step, seconds in rows]
    (made.folder / "metrics.csv").write_text("step,speed/seconds\n" + "".join(lines))
    return made


def test_neither_the_start_nor_one_slow_line_decides_what_a_step_takes(tmp_path: Path) -> None:
    rows = [(10, 30.0), (20, 31.0), (30, 32.0), (30, None), (40, 52.0), (50, 53.0), (56, 53.6)]
    assert seconds_per_step(task(tmp_path, rows)) == pytest.approx(0.1)


def test_a_log_of_one_line_does_not_tell(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its log has fewer than two lines with speed/seconds: set trainer.log_every_n_steps"):
        seconds_per_step(task(tmp_path, [(120, 30.0)]))
