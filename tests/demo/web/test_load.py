"""Twenty users at once for a minute. Needs Gradio; the numbers of docs/demo.md are what it prints (pytest -s)."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.demo.web.asking import LENGTH, QUESTIONS, expected, free_port
from tests.demo.web.browser import Page
from tests.demo.web.files import encoded
from tests.tiny_model import scene_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
pytest.importorskip("gradio", reason="the web demo's page needs Gradio: requirements-demo.txt")

USERS, SECONDS = 20, 60
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def demo(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """URL, process and log of `lit-eve demo`."""
    port, log = free_port(), tmp_path_factory.mktemp("demo") / "log"
    command = [sys.executable, "-m", "lit_eve.cli", "demo", "--model", str(model_folder), "--port", str(port)]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HTTP_PROXY": ""}) as run,
    ):
        try:
            while "Ctrl-C ends it" not in log.read_text():
                assert run.poll() is None, log.read_text()
                time.sleep(0.2)
            yield f"http://localhost:{port}", run, log
        finally:
            run.terminate()
            assert run.wait(60) == 0


class User:
    """Someone at the page, without its picture: the requests that it sends."""

    def __init__(self, url: str, number: int) -> None:
        self.url, self.name = f"{url}/gradio_api", f"user{number:06d}"
        config = json.loads(OPENER.open(f"{url}/config").read())
        self.events = {(target[0], target[1]): one for one in config["dependencies"] for target in one["targets"]}
        self.ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        self.values = {one["id"]: one["props"].get("value") for one in config["components"]}
        self.random = random.Random(number)
        self.answers: list[tuple[str, int, str]] = []
        self.seconds: list[float] = []
        self.faults: list[str] = []

    def send(self, component: str, event: str, data: dict[int, Any], told: Any = None) -> list[Any]:
        """Let something happen on the page; gives the last state of what it shows."""
        what = self.events[self.ids[component], event]
        values = [data.get(id, self.values[id]) for id in what["inputs"]]
        body = {"data": values, "event_data": told, "fn_index": what["id"], "trigger_id": self.ids[component]}
        body |= {"session_hash": self.name}
        request = urllib.request.Request(
            f"{self.url}/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        event_id = json.loads(OPENER.open(request).read())["event_id"]
        shown: list[Any] = [None] * len(what["outputs"])
        with OPENER.open(f"{self.url}/queue/data?session_hash={self.name}", timeout=120) as stream:
            for line in stream:
                message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if message.get("event_id") != event_id:
                    continue
                if message["msg"] == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"{component}: {message['output']}")
                    return shown
                if message["msg"] == "process_generating":
                    for place, update in enumerate(message["output"]["data"]):
                        shown[place] = _changed(shown[place], update)
        raise RuntimeError(f"{component}: the stream ended")

    def live(self, until: float) -> None:
        """Upload, ask, clear, again and again."""
        try:
            while time.monotonic() < until:
                question, seed = self.random.choice(QUESTIONS), self.random.randrange(8)
                content = base64.b64encode(encoded(scene_image(seed))).decode()
                self.send("adder", "image", {}, {"name": "scene.png", "data": content})
                begin = time.monotonic()
                shown = self.send("ask-button", "click", {self.ids["question"]: question, self.ids["length"]: LENGTH})
                self.seconds.append(time.monotonic() - begin)
                words = re.findall(r'<p class="text words".*?>(.*?)</p>', shown[0]["value"], re.DOTALL)
                self.answers += [(question, seed, unescape(re.sub(r"<.*?>", "", text))) for text in words]
                if len(words) != 1:
                    self.faults.append(f"{len(words)} answers to one question")
                self.send("clear", "click", {})
        except Exception as error:
            self.faults.append(repr(error))


def _changed(state: Any, update: Any) -> Any:
    """Gradio sends the first state of an output, then what changes of it."""
    if not isinstance(update, list):
        return update
    for action, path, value in update:
        if not path:
            state = value
            continue
        holder = state
        for key in path[:-1]:
            holder = holder[key]
        if action == "append":
            holder[path[-1]] += value
        elif action == "delete":
            del holder[path[-1]]
        else:
            holder[path[-1]] = value
    return state


def memory(process: subprocess.Popen) -> int:
    """Resident MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) // 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_twenty_users_for_a_minute(demo: tuple[str, subprocess.Popen, Path], pages: Any) -> None:
    url, process, log = demo
    users = [User(url, number) for number in range(USERS)]
    User(url, USERS).live(time.monotonic() + 3)  # what is loaded at the first question
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=user.live, args=(until,)) for user in users]
    sizes = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sizes.append(memory(process))
        time.sleep(1)
    answers = [answer for user in users for answer in user.answers]
    seconds = sorted(second for user in users for second in user.seconds)
    print(
        f"\n{len(answers)} answers in {SECONDS} s; seconds to the whole answer: median {statistics.median(seconds):.2f}, "
        f"95th percentile {seconds[int(0.95 * len(seconds))]:.2f}; memory {sizes[len(sizes) // 4]} to {sizes[-1]} MiB"
    )
    assert [fault for user in users for fault in user.faults] == []
    assert all(user.answers and len(user.answers) == len(user.seconds) for user in users)
    wrong = [(question, seed, text) for question, seed, text in answers if text != expected(question, seed)]
    assert wrong == []
    assert sizes[-1] - sizes[len(sizes) // 4] < 30, sizes
    assert "Traceback" not in log.read_text()

    page: Page = pages(url)  # alive afterwards
    page.locator(".example").first.click()
    page.wait_for("the example", lambda: page.locator("#pictures img").count() == 1)
    page.ask(None)
    assert len(page.answers()) == 1 and page.errors == []
