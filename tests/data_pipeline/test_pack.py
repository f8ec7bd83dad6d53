"""lit-eve pack: every good record in a shard, every other one in the report."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_annotations import BAD, contents_of, job_of, make_files, report_of, samples_of
from made_shards import photo, write_shards

from lit_eve.cli import main
from lit_eve.data import ShardReader
from lit_eve.data.annotations import open_annotations
from lit_eve.data.lengths import fingerprint, load_table
from lit_eve.data.pack import PackJob, pack
from lit_eve.data.shards.index import index_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor
from lit_eve.processing.sample import Sample

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


def test_half_a_character_is_rejected_not_fatal(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "\ud83d"}]
    records = [
        {"id": "日本", "conversations": talk[:1] * 2},
        {"id": "\ud83d", "conversations": talk},
        {"id": "s", "caption": "A cat."},
    ]
    records.append({"id": "good", "conversations": [talk[0], {"from": "gpt", "value": "\U0001f600"}]})
    (tmp_path / "a.json").write_text(json.dumps(records))
    for new in (4, 0):
        packed = pack(job_of(tmp_path))
        assert (packed.samples, packed.rejected, packed.new) == (1, 3, new)
    report = report_of(tmp_path / "out")
    assert [line["id"] for line in report] == ["日本", "\ud83d", "s"] and "is no Unicode" in report[1]["reason"]
    assert "日本" in (tmp_path / "out" / "rejected.jsonl").read_text()


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
        ((*annotations, "--output", tmp_path / "a.json" / "out"), "--output: .*a.json is no folder"),
        (("--annotations", tmp_path / "gone.json", *output), "gone.json does not exist"),
        ((*annotations, *output, "--images", tmp_path / "gone"), "folder of images"),
        ((*annotations, *output, "--samples-per-shard", 0), "samples_per_shard must be at least 1"),
        ((*annotations, "--output", tmp_path / "shards"), "holds shards that were not packed here"),
        (("--annotations", tmp_path / "shards", "--output", tmp_path / "shards"), "holds the shards that are to be packed"),
        (
            ("--annotations", tmp_path / "bad.json", "--output", tmp_path / "bad"),
            "none of the 3 records .* the first .record 0.: there is no",
        ),
    ]:
        code, text = run_command(capsys, *arguments)
        assert code == 2 and len(text.splitlines()) == 1
        with pytest.raises(ConfigError, match=message):
            raise ConfigError(text)
    assert main(["pack", *map(str, (*annotations, *output)), "--processes=0"]) == 2
