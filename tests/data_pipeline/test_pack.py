"""lit-eve pack: every good record in a shard, every other one in the report, whoever is killed meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_shards import photo, record, write_shards

from lit_eve.cli import main
from lit_eve.data import ShardReader
from lit_eve.data.annotations import AnnotationFile, Block, Entry, open_annotations
from lit_eve.data.index import index_shard
from lit_eve.data.json_stream import ArrayReader
from lit_eve.data.lengths import fingerprint, load_table
from lit_eve.data.pack import PackJob, pack
from lit_eve.data.shards import list_shards
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.processing import EveProcessor
from lit_eve.processing.sample import Sample

BAD = {  # what is wrong -> the reason in the report
    "missing": "there is no such image file",
    "no image": "the image cannot be opened",
    "no conversation": "no conversation",
    "role": "unknown role 'robot'",
    "count": "2 places for images (<image>), but there are 1 images",
    "no answer": "has no answer",
    "text": "is no object, but int",
}


def make_files(folder: Path, count: int, bad: bool = True) -> list[Any]:
    """Annotations ``a.json`` of LLaVA's kind with their images; every tenth record cannot be used. Gives all records."""
    rng = np.random.default_rng(count)
    (folder / "coco" / "train2017").mkdir(parents=True)
    (folder / "coco" / "no_image.jpg").write_text("hello")
    records: list[Any] = []
    for number in range(count):
        images = int(rng.choice([0, 1, 1, 1, 2]))
        one = record(rng, number, images)
        names = [f"coco/train2017/{number}_{i}.jpg" for i in range(images)]
        for name in names:
            (folder / name).write_bytes(photo(rng, 16, 16))
        if names:
            one["image"] = names[0] if images == 1 else names
        records.append(spoil(one, list(BAD)[number // 10 % len(BAD)]) if bad and number % 10 == 9 else one)
    (folder / "a.json").write_text(json.dumps(records))
    return records


def spoil(one: dict[str, Any], how: str) -> Any:
    about = lambda text: [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}]  # noqa: E731
    return {
        "missing": {"id": one["id"], "image": "coco/gone.jpg", "conversations": about("<image>")},
        "no image": {"id": one["id"], "image": "coco/no_image.jpg", "conversations": about("<image>")},
        "no conversation": {"id": one["id"]},
        "role": {"id": one["id"], "conversations": [{"from": "robot", "value": "Hi"}]},
        "count": {"id": one["id"], "image": "coco/gone.jpg", "conversations": about("<image><image>")},
        "no answer": {"id": one["id"], "conversations": about("Hi")[:1]},
        "text": 5,
    }[how]


def job_of(folder: Path, output: str = "out", **settings: Any) -> PackJob:
    settings = {"samples_per_shard": 16} | settings
    return PackJob(open_annotations(folder / "a.json"), folder / output, folder, **settings)


def samples_of(output: Path) -> list[Sample]:
    samples = []
    for path in list_shards(output):
        index, reader = index_shard(path), ShardReader([path])
        samples += [reader.read(0, int(index.offset[i]), int(index.size[i])) for i in range(len(index))]
    return samples


def report_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]


def contents_of(output: Path) -> dict[str, Any]:
    """Everything in a folder of shards; of the index, its arrays without the tar's time of change."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        if path.suffix == ".npz":
            with np.load(path) as file:
                found[str(path.relative_to(output))] = {key: file[key].tolist() for key in file.files if key != "state"}
        elif path.name != "settings.json":
            found[str(path.relative_to(output))] = path.read_bytes()
    return found


def in_process(work: Callable[[], Any]) -> multiprocessing.Process:
    """A real process that does this; its exit code is what the work gives."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(int(work() or 0)))
    process.start()
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def notes_in(output: Path) -> int:
    return len(list((output / ".pack").glob("[0-9]*.json")))


# ---- what is written


def test_samples_are_the_records_and_the_rest_is_reported(tmp_path: Path) -> None:
    records = make_files(tmp_path, 140)
    packed = pack(job_of(tmp_path))
    good = [one for number, one in enumerate(records) if number % 10 != 9]
    samples = samples_of(tmp_path / "out")
    assert [sample.key for sample in samples] == [one["id"] for one in good]
    for sample, one in zip(samples, good, strict=True):
        assert sample.conversation == one["conversations"] and sample.metadata.get("image") == one.get("image")
        names = one.get("image", [])
        assert sample.images == [(tmp_path / name).read_bytes() for name in ([names] if isinstance(names, str) else names)]
    report = report_of(tmp_path / "out")
    assert [line["record"] for line in report] == list(range(9, 140, 10))
    for line, reason in zip(report, [*BAD.values()] * 2, strict=True):
        assert reason in line["reason"]
        expected = records[line["record"]]
        assert line["id"] == (expected["id"] if isinstance(expected, dict) else None)
    assert (packed.samples, packed.rejected, packed.renamed, packed.new) == (126, 14, 0, 140)
    assert [path.name for path in list_shards(tmp_path / "out")] == [f"shard-{i:06d}.tar" for i in range(9)]


def test_every_format_of_a_record_can_be_trained_on(tmp_path: Path, processor: EveProcessor) -> None:
    make_files(tmp_path, 1, bad=False)
    image = photo(np.random.default_rng(1))
    (tmp_path / "b.png").write_bytes(image)
    llava = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A cat."}]
    parts = [{"type": "image", "path": "b.png"}, {"type": "text", "text": "What?"}]
    records = [
        {"id": "llava", "image": "b.png", "conversations": llava},
        {"id": "list", "image": ["b.png"], "conversations": llava, "model": "kept"},
        {"id": "caption", "image": "b.png", "caption": "A cat.\n"},
        {"id": "parts", "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]},
        {
            "id": "messages",
            "images": ["b.png"],
            "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
        },
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    packed = pack(PackJob(open_annotations(tmp_path / "a.jsonl"), tmp_path / "out", tmp_path), processor)
    assert packed.samples == 5
    samples = {sample.key: sample for sample in samples_of(tmp_path / "out")}
    assert all(sample.images == [image] for sample in samples.values()) and samples["list"].metadata["model"] == "kept"
    assert samples["caption"].conversation == [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    ids = {key: processor.encode_sample(sample)["input_ids"].tolist() for key, sample in samples.items()}
    assert ids["llava"] == ids["list"] == ids["parts"] == ids["messages"] != ids["caption"]
    table = load_table([tmp_path / "out"], processor)
    assert table.length.tolist() == [len(ids[key]) for key in samples] and not table.unusable


def test_any_number_of_processes_gives_the_same_files(tmp_path: Path, processor: EveProcessor) -> None:
    make_files(tmp_path, 100)
    for processes in (1, 2, 3):
        pack(job_of(tmp_path, f"out{processes}"), processor, processes=processes)
    one = contents_of(tmp_path / "out1")
    assert one == contents_of(tmp_path / "out2") == contents_of(tmp_path / "out3")
    assert sum(".index" in name for name in one) == sum(".tokens" in name for name in one) == 7


def test_lengths_are_counted_as_training_does(tmp_path: Path, processor: EveProcessor) -> None:
    make_files(tmp_path, 30)
    pack(job_of(tmp_path), processor, "plain")
    kept = list((tmp_path / "out" / ".lit_eve").glob(f"*.tokens-{fingerprint(processor, 'plain')}.npz"))
    before = [path.stat().st_mtime_ns for path in kept]
    table = load_table([tmp_path / "out"], processor, "plain")
    assert len(kept) == 2 and [path.stat().st_mtime_ns for path in kept] == before  # nothing was left to count
    expected = [len(processor.encode_sample(sample, "plain")["input_ids"]) for sample in samples_of(tmp_path / "out")]
    assert table.length.tolist() == expected


def test_a_shard_without_samples_is_none(tmp_path: Path) -> None:
    records = make_files(tmp_path, 20, bad=False)
    records[4:8] = [{"id": "x"}] * 4
    (tmp_path / "a.json").write_text(json.dumps(records))
    packed = pack(job_of(tmp_path, samples_per_shard=4))
    assert [path.name[-5] for path in list_shards(tmp_path / "out")] == ["0", "2", "3", "4"]
    assert packed.samples == 16 and len(report_of(tmp_path / "out")) == 4
    assert pack(job_of(tmp_path, samples_per_shard=4)).new == 0


def test_an_unfinished_block_is_made_again_as_things_are_now(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    for name in "ab":
        (tmp_path / name).write_bytes(photo(np.random.default_rng(0)))
    records = [{"id": str(i), "image": "aabb"[i], "conversations": talk} for i in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    job = job_of(tmp_path, samples_per_shard=2)
    pack(job)
    job.note(0).write_text("")  # as a power failure may leave it
    (tmp_path / "a").unlink()
    packed = pack(job)
    assert (packed.samples, packed.rejected, packed.new) == (2, 2, 2)
    assert list_shards(tmp_path / "out") == [job.shard(1)] and [line["id"] for line in report_of(tmp_path / "out")] == [
        "0",
        "1",
    ]


def test_an_id_that_occurs_again_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In LLaVA's mix an id is that of an image, which several records may be about."""
    records = make_files(tmp_path, 6, bad=False)
    records = [{**one, "id": "same" if number in (1, 2, 5) else one["id"]} for number, one in enumerate(records)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    assert main(["pack", "--annotations", str(tmp_path / "a.json"), "--output", str(tmp_path / "out"), "--processes=1"]) == 0
    assert "2 samples whose id their shard had already: kept" in capsys.readouterr().out
    samples = samples_of(tmp_path / "out")
    assert [sample.key for sample in samples] == ["s00000", "same", "same_2", "s00003", "s00004", "same_3"]
    assert [sample.conversation for sample in samples] == [one["conversations"] for one in records]


def test_verify_decodes(tmp_path: Path) -> None:
    records = make_files(tmp_path, 10, bad=False)
    number, one = next((number, one) for number, one in enumerate(records) if isinstance(one.get("image"), str))
    image = tmp_path / one["image"]
    image.write_bytes(image.read_bytes()[:-100])
    assert pack(job_of(tmp_path)).rejected == 0
    assert pack(job_of(tmp_path, "verified", verify=True)).rejected == 1
    (line,) = report_of(tmp_path / "verified")
    assert line["record"] == number and one["image"] in line["reason"] and "cannot be decoded" in line["reason"]


def test_shards_are_packed_again_without_what_nobody_can_use(tmp_path: Path) -> None:
    keys = write_shards(tmp_path / "old", 20, per_shard=8)
    source = list_shards(tmp_path / "old")[1]
    with tarfile.open(source, "a") as tar:
        info = tarfile.TarInfo("bad.json")
        tar.addfile(info)
    packed = pack(PackJob(open_annotations(tmp_path / "old"), tmp_path / "new"), processes=2)
    assert packed.samples == 20
    old = {sample.key: sample for sample in (s for path in list_shards(tmp_path / "old") for s in good_samples(path))}
    for sample in samples_of(tmp_path / "new"):
        assert sample.images == old[sample.key].images and sample.conversation == old[sample.key].conversation
    assert [sample.key for sample in samples_of(tmp_path / "new")] == keys
    (line,) = report_of(tmp_path / "new")
    assert (line["shard"], line["key"], line["id"]) == (source.name, "bad", "bad") and "JSON cannot be read" in line["reason"]


def good_samples(path: Path) -> Iterator[Sample]:
    index, reader = index_shard(path), ShardReader([path])
    for number in range(len(index)):
        if index.key(number) != "bad":
            yield reader.read(0, int(index.offset[number]), int(index.size[number]))


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


# ---- the command


def run_command(capsys: pytest.CaptureFixture, *arguments: Any) -> tuple[int, str]:
    code = main(["pack", *map(str, arguments), "--processes=1"])
    captured = capsys.readouterr()
    return code, captured.err if code else captured.out


def test_command_says_what_became_of_the_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_files(tmp_path, 50)
    arguments = ("--annotations", tmp_path / "a.json", "--output", tmp_path / "out")
    code, text = run_command(capsys, *arguments)
    assert code == 0 and "packed      45 samples" in text and "rejected    5, listed" in text
    assert "50 records in" in text and "samples/s" in text and "indexed     1 shards" in text
    code, text = run_command(capsys, *arguments)
    assert code == 0 and "packed      45 samples" in text and "this run" not in text


def test_shards_without_output_are_only_indexed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path, 20)
    before = [(path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()]
    code, text = run_command(capsys, "--annotations", tmp_path)
    assert code == 0 and "indexed     2 shards" in text
    assert len(list((tmp_path / ".lit_eve").glob("*.index.npz"))) == 2
    assert [(p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir() if p.name != ".lit_eve"] == before


def test_bad_arguments_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_files(tmp_path, 10)
    annotations, output = ("--annotations", tmp_path / "a.json"), ("--output", tmp_path / "out")
    (tmp_path / "bad.json").write_text(json.dumps([{"id": 1}] * 3))
    write_shards(tmp_path / "shards", 4)
    for arguments, message in [
        (annotations, "--output is needed"),
        ((*annotations, "--output", tmp_path / "a.json" / "out"), "packing into .* stopped: .*Not a directory"),
        (("--annotations", tmp_path / "gone.json", *output), "gone.json does not exist"),
        ((*annotations, *output, "--images", tmp_path / "gone"), "folder of images"),
        ((*annotations, *output, "--samples-per-shard", 0), "samples_per_shard must be at least 1"),
        ((*annotations, "--output", tmp_path / "shards"), "holds shards that were not packed here"),
        (("--annotations", tmp_path / "shards", "--output", tmp_path / "shards"), "holds the shards that are to be packed"),
        (
            ("--annotations", tmp_path / "bad.json", "--output", tmp_path / "bad"),
            "none of the 3 records .* the first: there is no",
        ),
    ]:
        code, text = run_command(capsys, *arguments)
        assert code == 2 and len(text.splitlines()) == 1
        with pytest.raises(ConfigError, match=message):
            raise ConfigError(text)
    assert main(["pack", *map(str, (*annotations, *output)), "--processes=0"]) == 2


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
    from lit_eve.nano.language import caption
    from lit_eve.nano.scenes import draw, scenes

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
