"""Shards: written whole or not at all, indexed once, read at random; broken ones are named."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_shards import photo, record, write_shards
from PIL import Image

from lit_eve.data import ShardReader, ShardWriter, read_samples
from lit_eve.data.shards import index as index_module
from lit_eve.data.shards.index import ensure_indices, index_shard, load_index, scan_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.images import load_image

RNG = np.random.default_rng(0)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def read_all(path: Path) -> list:
    index = index_shard(path)
    reader = ShardReader([path])
    return [reader.read(0, int(index.offset[i]), int(index.size[i])) for i in range(len(index))]


def test_round_trip_with_none_one_and_twelve_images(tmp_path: Path) -> None:
    images = [[photo(RNG, kind=kind) for _ in range(n)] for n, kind in [(0, "PNG"), (1, "JPEG"), (12, "PNG"), (2, "WEBP")]]
    records = [record(RNG, i, len(some)) | {"source": "made up"} for i, some in enumerate(images)]
    with ShardWriter(tmp_path) as writer:
        keys = [writer.write(*pair) for pair in zip(records, images, strict=True)]
    assert keys == ["s00000", "s00001", "s00002", "s00003"]
    assert [path.name for path in writer.shards] == ["shard-000000.tar"]
    for sample, expected, some, key in zip(read_all(writer.shards[0]), records, images, keys, strict=True):
        assert sample.key == key and sample.conversation == expected["conversations"]
        assert sample.images == some  # bytes as they were, in order: 10 comes after 9
        assert sample.metadata["source"] == "made up"


def test_index_knows_sizes_of_upright_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, format="JPEG", exif=exif)
    with ShardWriter(tmp_path) as writer:
        writer.write(record(RNG, 0, 3), [photo(RNG, 30, 50), buffer.getvalue(), Image.new("L", (9, 8))])
        writer.write(record(RNG, 1, 0))
    index = index_shard(writer.shards[0])
    assert index.image_sizes(0) == [(30, 50), (20, 40), (9, 8)] and index.image_sizes(1) == []


def test_keys_are_safe_and_unique(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        names = ["a/b.c d", "a/b.c d", "ünïcode", "x" * 300, "", "a.jpg"]
        keys = [writer.write(record(RNG, 0, 1) | {"id": name}, [photo(RNG)]) for name in names]
    assert len(set(keys)) == len(keys) and all("." not in key and "/" not in key for key in keys)
    samples = read_all(writer.shards[0])
    assert [sample.key for sample in samples] == keys and [sample.metadata["id"] for sample in samples] == names


def test_shards_are_cut_by_count_and_bytes(tmp_path: Path) -> None:
    assert len(write_shards(tmp_path / "count", 10, per_shard=4)) == 10
    assert [len(scan_shard(path)) for path in list_shards(tmp_path / "count")] == [4, 4, 2]
    with ShardWriter(tmp_path / "bytes", bytes_per_shard=5000) as writer:
        for i in range(6):
            writer.write(record(RNG, i, 1), [photo(RNG, 60, 60, "PNG")])
    assert len(writer.shards) == 6


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shards(tmp_path / name, 5)
    assert len({list_shards(tmp_path / name)[0].read_bytes() for name in ("one", "two")}) == 1


def test_an_unfinished_shard_never_appears(tmp_path: Path) -> None:
    with (
        pytest.raises(SampleError, match="bad: the image cannot be opened: it is no image"),
        ShardWriter(tmp_path, samples_per_shard=2) as writer,
    ):
        for i in range(3):
            writer.write(record(RNG, i, 1), [photo(RNG)])
        writer.write({"id": "bad", "conversations": [{"from": "gpt", "value": "x"}]}, [b"no image"])
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_writer_refuses_what_nobody_can_use(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        with pytest.raises(SampleError, match="e: there is no conversation"):
            writer.write({"id": "e", "conversations": []})
        with pytest.raises(SampleError, match="m: its image cannot be read"):
            writer.write(record(RNG, 0, 1) | {"id": "m"}, [tmp_path / "missing.jpg"])
    assert not list(tmp_path.iterdir())  # no empty shard


def test_writer_finds_its_folder_where_readers_look_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with ShardWriter("~/new/shards") as writer:
        writer.write(record(RNG, 0, 1))
    assert list_shards("~/new/shards") == [tmp_path / "home/new/shards/shard-000000.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    with pytest.raises(ConfigError, match="shard-000000.tar is no folder"):
        ShardWriter("~/new/shards/shard-000000.tar")


def test_img2dataset_shards_are_captions(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for i in range(3):
            add(tar, f"{i:09d}.jpg", photo(RNG))
            add(tar, f"{i:09d}.txt", f"caption {i}\n".encode())
            add(tar, f"{i:09d}.json", json.dumps({"caption": f"caption {i}", "url": "http://x", "width": 5}).encode())
    samples = read_all(tmp_path / "00000.tar")
    assert [s.conversation[1]["value"] for s in samples] == ["caption 0", "caption 1", "caption 2"]
    assert samples[0].conversation[0]["value"] == "<image>" and samples[0].metadata["url"] == "http://x"


def test_index_is_made_once_and_again_when_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, 4)
    path = list_shards(tmp_path)[0]
    first = index_shard(path)
    monkeypatch.setattr(index_module, "scan_shard", lambda path: pytest.fail("indexed twice"))
    again = index_shard(path)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("keys", "offset", "image_wh"))
    monkeypatch.undo()
    write_shards(tmp_path, 6, seed=1)
    assert load_index(path) is None and len(index_shard(path)) == 6
    os.utime(path, ns=(0, 0))
    assert load_index(path) is None


def test_a_broken_index_file_is_made_again(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    path = list_shards(tmp_path)[0]
    index_shard(path)
    (kept,) = (tmp_path / ".lit_eve").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert load_index(path) is None and len(index_shard(path)) == 4


def test_index_goes_to_the_cache_where_the_folder_cannot_be_written(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    (tmp_path / ".lit_eve").write_text("in the way, as a read-only folder is")
    path = list_shards(tmp_path)[0]
    index_shard(path)
    assert load_index(path) is not None
    assert list(Path(os.environ["LIT_EVE_CACHE"]).glob("*/shard-000000.index.npz"))


def test_indexing_in_parallel_gives_the_same(tmp_path: Path) -> None:
    write_shards(tmp_path, 30, per_shard=4)
    paths = list_shards(tmp_path)
    ensure_indices(paths, processes=2)
    for path in paths:
        kept, fresh = load_index(path), scan_shard(path)
        assert np.array_equal(kept.keys, fresh.keys) and np.array_equal(kept.data_offset, fresh.data_offset)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_truncated_shard_is_named(tmp_path: Path, processes: int) -> None:
    write_shards(tmp_path, 12, per_shard=4)
    whole, broken, _ = list_shards(tmp_path)
    data = broken.read_bytes()
    for keep in (100, len(data) // 2, scan_shard(broken).offset[3], scan_shard(whole).offset[0] + 700):
        broken.write_bytes(data[:keep])
        with pytest.raises(ConfigError, match=f"shard {broken}"):
            ensure_indices([whole, broken], processes)


def test_damage_in_the_middle_is_no_short_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, 6)
    path = list_shards(tmp_path)[0]
    index = scan_shard(path)
    data = bytearray(path.read_bytes())
    data[index.offset[3] : index.offset[3] + 512] = b"\xff" * 512
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="is cut off or damaged after 2 samples"):
        scan_shard(path)


def test_no_tar_no_index(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigError, match=r"x\.tar cannot be read"):
        scan_shard(tmp_path / "x.tar")


def test_scattered_members_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.json", "b.json", "a.jpg"):
            add(tar, name, b"{}")
    with pytest.raises(ConfigError, match="the members of sample 'a' do not stand next to each other"):
        scan_shard(tmp_path / "x.tar")


def test_list_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "some", 8, per_shard=4)
    assert len(list_shards(tmp_path / "some")) == 2
    assert len(list_shards(tmp_path / "some" / "*-000001.tar")) == 1
    for path, message in [(tmp_path, "holds no shards"), (tmp_path / "none", "does not exist")]:
        with pytest.raises(ConfigError, match=message):
            list_shards(path)


def test_reader_keeps_few_files_open_and_travels(tmp_path: Path) -> None:
    import pickle

    write_shards(tmp_path, 12, per_shard=2)
    paths = list_shards(tmp_path)
    reader = ShardReader(paths, max_open=2)
    keys = []
    for _ in range(2):
        for shard, path in enumerate(paths):
            index = index_shard(path)
            keys.append(reader.read(shard, int(index.offset[0]), int(index.size[0])).key)
    assert len(reader._files) == 2 and len(set(keys)) == 6
    assert not pickle.loads(pickle.dumps(reader))._files


def test_reader_names_what_is_wrong(tmp_path: Path) -> None:
    write_shards(tmp_path, 2)
    path = list_shards(tmp_path)[0]
    index = index_shard(path)
    reader = ShardReader([path, tmp_path / "gone.tar"])
    for arguments in [
        (0, 10, 2000),
        (0, int(index.offset[0]), 10),
        (0, int(index.offset[0]), int(index.size.sum())),
        (1, 0, 512),
    ]:
        with pytest.raises(SampleError, match="hold no sample"):
            reader.read(*arguments)


@pytest.mark.parametrize(
    "text, message",
    [
        (b"{", "its JSON cannot be read"),
        (b"[]", "its JSON is no object"),
        (b"{}", "there is no conversation"),
        (
            b'{"conversations": [{"from": "gpt", "value": "x"}], "image": "a.jpg"}',
            "names 1 images, but the shard holds 0",
        ),
    ],
)
def test_broken_records(tmp_path: Path, text: bytes, message: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.json", text)
    with pytest.raises(SampleError, match=f"a: .*{message}"):
        read_all(tmp_path / "x.tar")


def test_samples_are_read_without_a_trainer(tmp_path):
    with ShardWriter(tmp_path, samples_per_shard=4) as shards:
        for number in range(10):
            turns = [{"from": "human", "value": f"<image>\nhow many? {number}"}, {"from": "gpt", "value": str(number)}]
            shards.write({"id": str(number), "conversations": turns}, [Image.new("RGB", (8, 8), (number, 0, 0))])
    samples = read_samples(tmp_path)
    assert [sample.key for sample in samples] == [str(number) for number in range(10)]
    assert load_image(samples[7].images[0]).getpixel((0, 0)) == (7, 0, 0)
    assert [sample.key for sample in read_samples(tmp_path, limit=4)] == ["0", "3", "6", "9"]
    assert len(read_samples(tmp_path / "shard-000002.tar", limit=5)) == 2
    with pytest.raises(ConfigError, match="nothing"):
        read_samples(tmp_path / "nothing")
