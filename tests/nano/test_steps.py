from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_eve.errors import ConfigError
from lit_eve.nano.steps import Journal, Step, dependents


class Kitchen:
    """Three steps that write down when they run: dough -> bread -> toast."""

    def __init__(self, folder: Path, **settings: int) -> None:
        self.folder, self.ran = folder, []
        dough = self.step("dough", {"flour": {"grams": settings.get("flour", 500)}, "water": 300})
        bread = self.step("bread", {"minutes": settings.get("minutes", 50)}, dough)
        self.steps = [dough, bread, self.step("toast", {}, bread)]
        self.journal = Journal(folder / "steps")

    def step(self, name: str, settings: dict, *after: Step) -> Step:
        return Step(name, name, self.folder / name, settings, lambda: self.make(name), after)

    def make(self, name: str) -> None:
        self.ran.append(name)
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def cook(self) -> list[str]:
        for step in self.steps:
            if not self.journal.is_done(step):
                self.journal.run(step)
        return self.ran


def test_each_step_is_made_once(tmp_path: Path) -> None:
    assert Kitchen(tmp_path).cook() == ["dough", "bread", "toast"]
    assert Kitchen(tmp_path).cook() == []


def test_what_was_removed_is_made_again_and_what_came_from_it_stays(tmp_path: Path) -> None:
    Kitchen(tmp_path).cook()
    (tmp_path / "bread").rmdir()
    assert Kitchen(tmp_path).cook() == ["bread"]  # the same settings: the same bread


def test_changed_settings_are_named(tmp_path: Path) -> None:
    Kitchen(tmp_path).cook()
    message = r"bread was made with other settings \(minutes: 50, now 60\). --redo bread makes it .* again; --output"
    with pytest.raises(ConfigError, match=message):
        Kitchen(tmp_path, minutes=60).cook()
    with pytest.raises(ConfigError, match=r"dough was made with other settings \(flour.grams: 500, now 450\)"):
        Kitchen(tmp_path, flour=450).cook()


def test_a_step_notices_that_it_came_from_something_else(tmp_path: Path) -> None:
    Kitchen(tmp_path).cook()
    (tmp_path / "bread").rmdir()
    changed = Kitchen(tmp_path, minutes=60)
    changed.journal.run(changed.steps[1])
    with pytest.raises(ConfigError, match="toast was made from another bread. --redo toast"):
        changed.cook()


def test_a_step_notices_a_change_two_steps_before(tmp_path: Path) -> None:
    Kitchen(tmp_path).cook()
    for name in ("dough", "bread"):
        (tmp_path / name).rmdir()
    changed = Kitchen(tmp_path, flour=450)
    for step in changed.steps[:2]:
        changed.journal.run(step)
    with pytest.raises(ConfigError, match="toast was made from another bread"):
        changed.cook()


def test_settings_that_change_after_an_interruption_are_noticed(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.make = lambda name: (tmp_path / name).mkdir() or 1 / 0
    with pytest.raises(ZeroDivisionError):
        kitchen.cook()
    with pytest.raises(ConfigError, match="dough was begun with other settings"):
        Kitchen(tmp_path, flour=450).cook()
    assert Kitchen(tmp_path).cook() == ["dough", "bread", "toast"]


def test_settings_that_change_after_work_ahead_of_its_turn_are_noticed(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    bread = kitchen.steps[1]
    kitchen.journal.begin(bread)
    bread.run()
    assert not kitchen.journal.is_done(bread)
    with pytest.raises(ConfigError, match=r"bread was begun with other settings \(minutes: 50, now 20\)"):
        Kitchen(tmp_path, minutes=20).journal.is_done(Kitchen(tmp_path, minutes=20).steps[1])
    kitchen.ran.clear()
    assert kitchen.cook() == ["dough", "bread", "toast"]


def test_redo_forgets_a_step_and_what_depends_on_it(tmp_path: Path) -> None:
    Kitchen(tmp_path).cook()
    kitchen = Kitchen(tmp_path, minutes=60)
    kitchen.journal.forget(dependents(kitchen.steps, "bread"))
    assert kitchen.cook() == ["bread", "toast"]
    with pytest.raises(ConfigError, match="no step 'jam'; the steps are dough, bread, toast"):
        dependents(kitchen.steps, "jam")


def test_time_adds_up_over_a_kill(tmp_path: Path) -> None:
    code = f"""
import time; from pathlib import Path; from lit_eve.nano import steps
steps.HEARTBEAT = 0.05
out = Path({str(tmp_path)!r})
work = lambda: (out / "nap").mkdir(exist_ok=True) or time.sleep(60)
steps.Journal(out).run(steps.Step("nap", "nap", out / "nap", {{}}, work))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    state = tmp_path / "nap.json"
    deadline = time.monotonic() + 60
    while not (state.exists() and json.loads(state.read_text())["seconds"] > 0.5):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = Step("nap", "nap", tmp_path / "nap", {}, lambda: time.sleep(0.2))
    journal = Journal(tmp_path)
    before = journal.seconds(step)
    assert not journal.is_done(step)
    journal.run(step)
    assert journal.is_done(step) and before > 0.5 and journal.seconds(step) == pytest.approx(before + 0.2, abs=0.15)


def test_core_seconds_count_work_and_processes_but_no_waiting(tmp_path: Path) -> None:
    spin = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"

    def work() -> None:
        (tmp_path / "sum").mkdir()
        time.sleep(2)
        subprocess.run([sys.executable, "-c", spin], check=True)

    step, journal = Step("sum", "sum", tmp_path / "sum", {}, work), Journal(tmp_path)
    journal.run(step)
    assert 0.5 <= journal.core_seconds(step) < 1.5 < 2.5 <= journal.seconds(step)
