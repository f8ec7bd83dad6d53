"""Annotations in every published form become records of shards; what cannot be read is at fault, not the run."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_shards import photo, record, write_shards

from lit_eve.data.annotations import Annotations, Block, Entry, open_annotations, shard_record
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError, SampleError

QUESTION = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


def records_of(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [record(rng, number, images=0) for number in range(count)]


def blocks_of(annotations: Annotations, count: int, known: dict[int, Block] | None = None) -> list[Block]:
    return list(annotations.blocks(count, (known or {}).get))


def entries_of(annotations: Annotations, count: int = 1000) -> list[Entry]:
    return [entry for block in blocks_of(annotations, count) for entry in annotations.entries(block)]


def save(path: Path, records: list[Any]) -> Path:
    as_lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records) if as_lines else json.dumps(records, indent=1))
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


# ---- records


@pytest.mark.parametrize(
    ("given", "conversation", "names"),
    [
        # LLaVA: with an image in a subfolder, and text only
        ({"id": "1", "image": "ocr_vqa/images/1.jpg", "conversations": QUESTION}, QUESTION, ["ocr_vqa/images/1.jpg"]),
        ({"id": "1", "conversations": QUESTION[1:]}, QUESTION[1:], []),
        ({"id": "1", "image": None, "conversations": QUESTION[1:]}, QUESTION[1:], []),
        ({"id": "1", "image": ["a.jpg", "b.jpg"], "conversations": QUESTION}, QUESTION, ["a.jpg", "b.jpg"]),
        (
            {"image": "a.jpg", "caption": " A cat.\n"},
            [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}],
            ["a.jpg"],
        ),
        (
            {"messages": [{"role": "user", "content": "<image>Hi"}], "images": ["a.jpg"]},
            [{"role": "user", "content": "<image>Hi"}],
            ["a.jpg"],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "Hi"}]}]},
            [{"role": "user", "content": [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "Hi"}]}],
            ["a.jpg"],
        ),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}],
                "images": ["a.jpg"],
            },
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}],
            ["a.jpg"],
        ),
    ],
)
def test_records_of_all_kinds(given: dict, conversation: list, names: list[str]) -> None:
    kept, found = shard_record({**given, "source": "made up"})
    assert kept["conversations"] == conversation and found == names
    assert kept["source"] == "made up" and kept.get("id") == given.get("id") and "messages" not in kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id": "1"}, "no conversation .* and no caption"),
        ({"id": "1", "conversations": []}, "no conversation"),
        ({"id": "1", "caption": 5}, "no caption"),
        ({"image": 5, "conversations": QUESTION}, "name of a file or a list of names"),
        ({"image": ["a.jpg", {}], "conversations": QUESTION}, "name of a file or a list of names"),
    ],
)
def test_records_that_nobody_can_use(given: dict, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        shard_record(given)


# ---- files


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("count", [1, 4, 5, 100])
def test_blocks_hold_every_record_once_and_can_be_known(tmp_path: Path, name: str, count: int) -> None:
    records = records_of(20)
    annotations = open_annotations(save(tmp_path / name, records))
    blocks = blocks_of(annotations, count)
    assert [block.number for block in blocks] == list(range(-(-20 // count)))
    assert [entry.record for entry in entries_of(annotations, count)] == records
    place = (lambda i: {"record": i}) if name == "a.json" else (lambda i: {"line": i + 1})
    assert [entry.place for entry in entries_of(annotations, count)] == [place(i) for i in range(20)]
    for known in (blocks[:1], blocks[1:], blocks[::2], blocks):  # in whatever order workers finished
        assert blocks_of(annotations, count, {block.number: block for block in known}) == blocks


def test_known_blocks_are_not_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", records_of(20))
    blocks = blocks_of(open_annotations(path), 5)
    data = bytearray(path.read_bytes())
    data[blocks[1].start + 5 : blocks[1].end] = b"x" * (blocks[1].end - blocks[1].start - 5)
    path.write_bytes(data)
    annotations = open_annotations(path)
    assert blocks_of(annotations, 5, {1: blocks[1]}) == blocks
    with pytest.raises(ConfigError):
        blocks_of(annotations, 5)


def test_what_stands_before_damage_is_given(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", records_of(20))
    path.write_bytes(path.read_bytes()[:-30])
    annotations = open_annotations(path)
    known: dict[int, Block] = {}
    for _ in range(2):  # the second time as a run that goes on
        given: list[Block] = []
        with pytest.raises(ConfigError, match="after 19 records"):
            given.extend(annotations.blocks(6, known.get))
        assert [block.count for block in given] == [6, 6, 6, 1]
        known = {block.number: block for block in given}


def test_broken_lines_are_at_fault_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\n\n{"id": 2\n"three"\n\xff\n[1]\n{"id": 4}')
    entries = entries_of(open_annotations(path), 2)
    assert [(entry.place["line"], entry.record) for entry in entries] == [
        (1, {"id": 1}),
        (3, {}),
        (4, {}),
        (5, {}),
        (6, {}),
        (7, {"id": 4}),
    ]
    faults = [entry.fault for entry in entries]
    assert faults[0] is None and faults[5] is None
    assert "no JSON" in faults[1] and "but str; a folder of JSON files" in faults[2]
    assert "no JSON" in faults[3] and "but list" in faults[4]


def test_names_of_json_files(tmp_path: Path) -> None:
    """EVE's split form: data_is_index of EVEv1/eve/train/train.py."""
    records = records_of(3)
    for number, one in enumerate(records):
        (tmp_path / f"n{number}.json").write_text(json.dumps(one))
    (tmp_path / "broken.json").write_text("{")
    entries = entries_of(open_annotations(save(tmp_path / "a.json", ["n2", "n0", "gone", "broken", "n1"]), tmp_path))
    assert [entry.record for entry in entries if entry.fault is None] == [records[2], records[0], records[1]]
    assert "gone.json cannot be read" in entries[2].fault and "broken.json cannot be read" in entries[3].fault
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        open_annotations(tmp_path / "a.json", tmp_path / "nowhere")


def test_jsonl_by_its_contents_and_one_object(tmp_path: Path) -> None:
    lines = save(tmp_path / "a.jsonl", records_of(3)).rename(tmp_path / "lines.json")
    assert [entry.record for entry in entries_of(open_annotations(lines))] == records_of(3)
    (tmp_path / "object.json").write_text(json.dumps({"data": records_of(3)}, indent=1))
    with pytest.raises(ConfigError, match="object.json is one JSON object; it should be a list"):
        open_annotations(tmp_path / "object.json")
    with pytest.raises(ConfigError, match="gone.json does not exist"):
        open_annotations(tmp_path / "gone.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder holds no shards"):
        open_annotations(tmp_path / "folder")


# ---- shards


def test_shards_of_img2dataset(tmp_path: Path) -> None:
    image = photo(np.random.default_rng(0))
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number, caption in enumerate(["A cat.", "A dog.", None]):
            key = f"{number:09d}"
            facts = {"caption": caption, "url": f"https://example.org/{number}", "key": key, "status": "success", "width": 9}
            add(tar, f"{key}.jpg", image)
            if caption:
                add(tar, f"{key}.txt", caption.encode())
            add(tar, f"{key}.json", json.dumps(facts).encode())
    first, second, third = entries_of(open_annotations(tmp_path))
    assert first.place == {"shard": "00000.tar", "key": "000000000"} and first.images == [image]
    assert first.record["id"] == "000000000" and first.record["url"] == "https://example.org/0"
    assert second.record["conversations"] == [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A dog."}]
    assert "no conversation" in third.fault and third.record["id"] == "000000002"


def test_every_shard_is_a_block(tmp_path: Path) -> None:
    keys = write_shards(tmp_path, 20, per_shard=8)
    annotations = open_annotations(str(tmp_path / "shard-*.tar"))
    blocks = blocks_of(annotations, 5)
    assert len(blocks) == 3 and blocks[-1].end == annotations.size
    assert [entry.record["id"] for entry in entries_of(annotations)] == keys
    assert not any(entry.fault for entry in entries_of(annotations))


@pytest.mark.parametrize("missing", [1024, 10_240 + 512, 10_240 + 4000])
def test_a_shard_that_is_cut_off_keeps_what_is_whole(tmp_path: Path, missing: int) -> None:
    keys = write_shards(tmp_path, 8, per_shard=8)
    (shard,) = list_shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // tarfile.RECORDSIZE * tarfile.RECORDSIZE])
    with tarfile.open(shard) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    shard.write_bytes(shard.read_bytes()[: end + 1024 - missing])
    *whole, last = entries_of(open_annotations(tmp_path))
    assert [entry.record["id"] for entry in whole] == keys[: len(whole)] and not any(entry.fault for entry in whole)
    assert f"cut off or damaged after {len(whole)} samples" in last.fault and last.record["id"] == keys[len(whole)]


def test_identity_changes_with_the_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", records_of(3))
    write_shards(tmp_path, 4)
    for source in (path, tmp_path):
        before = open_annotations(source).identity()
        assert open_annotations(source).identity() == before
        target = path if source is path else list_shards(tmp_path)[0]
        target.write_bytes(target.read_bytes() + b" ")
        assert open_annotations(source).identity() != before
