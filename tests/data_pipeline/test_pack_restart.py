"""Packing goes on after a kill, a full disk or damage, in the same folder only; and at size."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_annotations import contents_of, in_process, job_of, make_files, notes_in, samples_of, wait_for

from lit_eve.cli import main
from lit_eve.data.annotations import AnnotationFile, Block, Entry, open_annotations
from lit_eve.data.annotations.json_stream import ArrayReader
from lit_eve.data.pack import PackJob, pack
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.processing import EveProcessor

# ---- going on


def test_a_killed_run_goes_on_without_loss_or_duplicates(tmp_path: Path, processor: EveProcessor) -> None:
    make_files(tmp_path, 1500)
    (tmp_path / "killed" / ".lit_eve").mkdir(parents=True)
    (tmp_path / "killed" / ".lit_eve" / "of_a_killed_run.tmp").touch()
    command = lambda: pack(job_of(tmp_path, "killed", samples_per_shard=20), processor, processes=2)  # noqa: E731
    for notes in (5, 40):  # twice, so that a run that goes on is killed as well
        process = in_process(lambda: command() and 0)
        wait_for(lambda notes=notes: notes_in(tmp_path / "killed") >= notes)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert notes <= notes_in(tmp_path / "killed") < 75, "it was over before it was killed"
    done = notes_in(tmp_path / "killed")
    packed = command()  # workers of the killed run must be gone, or the folder would be refused
    assert packed.new <= 1500 - 20 * done and packed.samples + packed.rejected == 1500
    pack(job_of(tmp_path, "whole", samples_per_shard=20), processor)
    assert contents_of(tmp_path / "killed") == contents_of(tmp_path / "whole")


class Deadly(AnnotationFile):
    """The process that reads its third block is killed."""

    def entries(self, block: Block) -> Iterator[Entry]:
        if block.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().entries(block)


def test_a_killed_worker_ends_the_run(tmp_path: Path) -> None:
    make_files(tmp_path, 100)
    job = PackJob(Deadly(tmp_path / "a.json", ArrayReader), tmp_path / "out", tmp_path, 5)
    with pytest.raises(LitEveError, match="a worker process was killed.*what is done stays done"):
        pack(job, processes=2)
    assert pack(job_of(tmp_path, samples_per_shard=5), processes=2).samples == 90
    pack(job_of(tmp_path, "whole", samples_per_shard=5))
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_sentence_and_what_is_done_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture, processes: int
) -> None:
    """The limit on the size of a file stands in for the disk's: the same error of the same write."""
    records = make_files(tmp_path, 60, bad=False)
    records[30]["more"] = "x" * 1_000_000
    (tmp_path / "a.json").write_text(json.dumps(records))
    arguments = ["pack", f"--annotations={tmp_path / 'a.json'}", f"--output={tmp_path / 'out'}"]
    arguments += ["--samples-per-shard=10", f"--processes={processes}"]

    def with_limit() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        return main(arguments)

    process = in_process(with_limit)
    process.join()
    error = capfd.readouterr().err
    assert process.exitcode == 2 and "Traceback" not in error
    assert "shard-000003.tar stopped: [Errno 27] File too large; what is done stays done, the same command goes on" in error
    assert not list((tmp_path / "out").glob("*.tmp")) and notes_in(tmp_path / "out") >= 3
    assert main(arguments) == 0
    assert [sample.key for sample in samples_of(tmp_path / "out")] == [one["id"] for one in records]


def test_damage_keeps_what_stands_before_it(tmp_path: Path) -> None:
    records = make_files(tmp_path, 50, bad=False)
    path = tmp_path / "a.json"
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"after 49 records: .*; the 49 samples before it are packed"):
            pack(job_of(tmp_path), processes=2)
        assert [sample.key for sample in samples_of(tmp_path / "out")] == [one["id"] for one in records[:-1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples_per_shard": 8}, "was begun with samples_per_shard = 16, now it is 8"),
        ({"verify": True}, "verify = False, now it is True"),
        ({"images": Path("coco")}, "images = "),
        ({"annotations": "other.json"}, "annotations = .*a.json, now it is .*other.json"),
        ({"annotations": "a.json"}, "annotations' bytes = "),
    ],
)
def test_another_job_in_the_same_folder_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    make_files(tmp_path, 20)
    pack(job_of(tmp_path))
    if "annotations" in change:
        text = (tmp_path / "a.json").read_text()
        (tmp_path / change["annotations"]).write_text(text + " " * (change["annotations"] == "a.json"))
    settings = {"annotations": "a.json", "images": Path("."), "samples_per_shard": 16, "verify": False} | change
    annotations = open_annotations(tmp_path / settings.pop("annotations"))
    with pytest.raises(ConfigError, match=message):
        pack(PackJob(annotations, tmp_path / "out", tmp_path / settings.pop("images"), **settings))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_eve.data import pack as module

    make_files(tmp_path, 20)
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with module._lock(tmp_path / "out"), pytest.raises(ConfigError, match="another run packs into"):
        pack(job_of(tmp_path))
    assert pack(job_of(tmp_path)).samples == 18


# ---- at size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_two_gigabytes_pass_through_little_memory(tmp_path: Path) -> None:
    """Text only, so that annotations, not images, are what is large."""
    words = " ".join(np.random.default_rng(0).choice(["red", "blue", "circle", "square"], 1000))
    path = tmp_path / "a.json"
    count = 0
    with open(path, "w") as file:
        while file.tell() < 2_050_000_000:
            talk = [{"from": "human", "value": words}, {"from": "gpt", "value": words}]
            file.write(("," if count else "[") + json.dumps({"id": str(count), "conversations": talk * 2}))
            count += 1
        file.write("]")
    code = """
import re, resource, sys; from pathlib import Path; from lit_eve.cli import main
code = main(sys.argv[1:])
own = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss begins with that of pytest
print("peak", own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
    command = ["pack", f"--annotations={path}", f"--output={tmp_path / 'out'}", "--processes=2", "--samples-per-shard=2000"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    print(done.stdout)
    peaks = [int(peak) // 1024 for peak in done.stdout.split("peak")[1].split()]
    assert max(peaks) < 700, "MiB of the largest process; the imports alone take some 400"
    assert f"packed      {count:,} samples" in done.stdout


@pytest.mark.slow
def test_twenty_thousand_files_of_the_miniature_world(tmp_path: Path) -> None:
    """The real command, killed in the middle: the same folder as by a run without a break, and every scene in it."""
    from lit_eve.nano.world.language import caption
    from lit_eve.nano.world.scenes import draw, scenes

    (tmp_path / "images").mkdir()
    records = []
    for number, scene in zip(range(20_000), scenes("pack", 0), strict=False):
        name = f"images/{number:06d}.{'jpg' if number % 2 else 'png'}"
        draw(scene).save(tmp_path / name)
        talk = [{"from": "human", "value": "<image>\nWhat is there?"}, {"from": "gpt", "value": caption(scene)}]
        records.append({"id": f"{number:06d}", "image": name, "conversations": talk})
    (tmp_path / "a.json").write_text(json.dumps(records))

    def command(output: str, processes: int) -> list[str]:
        arguments = [f"--annotations={tmp_path / 'a.json'}", f"--output={tmp_path / output}", f"--processes={processes}"]
        return [sys.executable, "-m", "lit_eve.cli", "pack", *arguments, "--samples-per-shard=500"]

    process = subprocess.Popen(command("killed", 2), stdout=subprocess.DEVNULL)
    wait_for(lambda: notes_in(tmp_path / "killed") >= 15, 120)
    process.kill()
    process.wait()
    assert notes_in(tmp_path / "killed") < 40
    for output, processes in (("killed", 2), ("one", 1), ("two", 2)):
        done = subprocess.run(command(output, processes), capture_output=True, text=True, check=True)
        print(output, done.stdout)
    whole = contents_of(tmp_path / "one")
    assert whole == contents_of(tmp_path / "killed") == contents_of(tmp_path / "two")
    samples = samples_of(tmp_path / "killed")
    assert [sample.key for sample in samples] == [one["id"] for one in records]
    for sample, one in zip(samples, records, strict=True):
        assert sample.conversation == one["conversations"] and sample.images == [(tmp_path / one["image"]).read_bytes()]
