"""Tars that others made: read, or refused with what to do; nothing is passed over without a word."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_annotations import report_of, samples_of
from made_shards import photo
from PIL import Image

from lit_eve.data import ShardReader
from lit_eve.data.annotations import open_annotations
from lit_eve.data.lengths import load_table
from lit_eve.data.pack import PackJob, pack
from lit_eve.data.shards.index import index_shard, scan_shard
from lit_eve.data.shards.tar import printable
from lit_eve.errors import ConfigError, LitEveError, SampleError
from lit_eve.processing import EveProcessor
from lit_eve.processing.sample import Sample

IMAGE = photo(np.random.default_rng(0), 20, 30)
TEXT = json.dumps({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]}).encode()
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info, data


def make_tar(path: Path, *members: tuple, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for one in members:
            info, data = one if isinstance(one[0], tarfile.TarInfo) else member(*one)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(name: str) -> list[tuple[str, bytes]]:
    return [(f"{name}.json", TEXT), (f"{name}.jpg", IMAGE)]


def read_all(path: Path) -> dict[str, Sample | str]:
    """Samples by key; where one cannot be read, why."""
    index, found = scan_shard(path), {}
    reader = ShardReader([path])
    for number in range(len(index)):
        key = index.key(number)
        try:
            found[key] = reader.read(0, int(index.offset[number]), int(index.size[number]))
            assert number not in index.reasons()
            for size, image in zip(index.image_sizes(number), found[key].images, strict=True):
                assert size == (20, 30) or image != IMAGE
        except SampleError as error:
            found[key] = str(error)
            if number in index.reasons():
                assert str(error) == f"{key}: {index.reasons()[number]}"
    return found


def packed_again(path: Path) -> tuple[list[Sample], list[dict[str, Any]]]:
    output = path.parent / f"{path.stem}_packed"
    pack(PackJob(open_annotations(path), output))
    return samples_of(output), report_of(output)


# ---- names


@pytest.mark.parametrize("form", FORMATS)
def test_what_file_managers_leave_is_passed_over(tmp_path: Path, form: str) -> None:
    mac = [one for name, data in [*pair("a"), *pair("b")] for one in ((f"._{name}", b"\0" * 104), (name, data))]
    noise = [(".DS_Store", b"x"), ("__MACOSX/._a.jpg", b"x"), ("__MACOSX/c.json", TEXT), (".hidden/d.json", TEXT)]
    folder = [member("e", kind=tarfile.DIRTYPE), member("fifo", kind=tarfile.FIFOTYPE)]
    more = [("./e/f.json", TEXT), member("./e/g", kind=tarfile.DIRTYPE), ("./e/._f.jpg", b"x"), ("./e/f.jpg", IMAGE)]
    path = make_tar(tmp_path / "0.tar", *folder, *mac, *noise, *more, format=FORMATS[form])
    samples = read_all(path)
    assert list(samples) == ["a", "b", "./e/f"] and all(sample.images == [IMAGE] for sample in samples.values())
    again, rejected = packed_again(path)
    assert [sample.conversation for sample in again] == [sample.conversation for sample in samples.values()] and not rejected


def test_headers_that_belong_to_no_member(tmp_path: Path) -> None:
    """The comment that git archive writes, and names longer than a header."""
    name = "folder/" + "n" * 200
    options = {"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "1" * 40}}
    samples = read_all(make_tar(tmp_path / "0.tar", *pair(name), *pair("b"), **options))
    assert list(samples) == [name, "b"] and all(sample.images == [IMAGE] for sample in samples.values())


@pytest.mark.parametrize(("form", "encoding"), [("gnu", "latin-1"), ("ustar", "latin-1"), ("gnu", "utf-8"), ("pax", "utf-8")])
def test_names_in_any_encoding(tmp_path: Path, processor: EveProcessor, form: str, encoding: str) -> None:
    path = make_tar(tmp_path / "0.tar", *pair("café"), *pair("b"), format=FORMATS[form], encoding=encoding)
    key = "café" if encoding == "utf-8" else r"caf\xe9"
    assert list(read_all(path)) == [key, "b"] and read_all(path)[key].images == [IMAGE]
    assert not load_table([tmp_path], processor).unusable
    again, rejected = packed_again(path)
    assert len(again) == 2 and not rejected and again[0].metadata["id"] == key


def test_printable_names() -> None:
    assert [printable(name) for name in ("a.jpg", "東京.jpg", "a\nb", "a\udce9b")] == ["a.jpg", "東京.jpg", r"a\nb", r"a\xe9b"]


def test_keys_end_at_the_first_full_stop(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "0.tar", *pair("x/photo.v1"), *pair("x/photo.v2"))
    assert "photo.v1.json is no text of its own: name it photo_v1.json or so" in read_all(path)["x/photo"]
    with pytest.raises(ConfigError, match="first full stop"):
        packed_again(path)


# ---- members


def test_members_that_are_there_twice(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "0.tar", *pair("a"), *pair("a"), ("b.jpg", IMAGE), ("b.JPG", IMAGE), ("b.txt", b"B"), *pair("c"))
    samples = read_all(path)
    assert "its shard holds a.json more than once" in samples["a"] and "b.jpg more than once" in samples["b"]
    again, rejected = packed_again(path)
    assert [sample.key for sample in again] == ["c"] and [line["key"] for line in rejected] == ["a", "b"]


def test_members_that_are_apart(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "0.tar", *(one for pairs in zip(pair("a"), pair("b"), strict=True) for one in pairs), *pair("c"))
    with pytest.raises(ConfigError, match="the members of sample 'a' do not stand next to each other.*--sort=name"):
        scan_shard(path)
    again, rejected = packed_again(path)
    assert [sample.key for sample in again] == ["c"] and len(rejected) == 4
    assert all("do not stand next to these" in line["reason"] for line in rejected[2:])


def test_links(tmp_path: Path, processor: EveProcessor) -> None:
    path = make_tar(
        *(tmp_path / "0.tar", *pair("a"), ("b.json", TEXT), member("b.jpg", kind=tarfile.LNKTYPE, target="a.jpg")),
        *(("c.json", TEXT), member("c.jpg", kind=tarfile.SYMTYPE, target="a.jpg"), ("d.json", TEXT)),
        *(member("d.jpg", kind=tarfile.SYMTYPE, target="/gone.jpg"), ("e.json", TEXT)),
        member("e.jpg", kind=tarfile.SYMTYPE, target="e.jpg"),
    )
    samples = read_all(path)
    assert "b.jpg is a link to a.jpg; pack the shards again, with lit-eve pack" in samples["b"]
    assert [one.key for one in load_table([tmp_path], processor).unusable] == ["b", "c", "d", "e"]
    again, rejected = packed_again(path)
    assert [sample.key for sample in again] == ["a", "b", "c"] and all(sample.images == [IMAGE] for sample in again)
    assert [line["key"] for line in rejected] == ["d", "e"]
    assert "d.jpg cannot be read: it is a link to /gone.jpg, which is no file of this shard" in rejected[0]["reason"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_sparse_files(tmp_path: Path) -> None:
    """As GNU tar keeps files with holes."""
    (tmp_path / "a.json").write_bytes(TEXT)
    with open(tmp_path / "a.bmp", "wb") as file:
        Image.new("RGB", (300, 300)).save(file, "BMP")
        os.truncate(tmp_path / "a.bmp", 54)
        os.truncate(tmp_path / "a.bmp", 54 + 3 * 300 * 300)
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(["tar", "-S", f"--format={form}", "-C", tmp_path, "-cf", path, "a.json", "a.bmp"], check=True)
        if path.stat().st_size > 200_000:
            pytest.skip("this file system knows no holes")
        assert "a.bmp is a sparse file; pack the shards again" in read_all(path)["a"]
        ((sample,), report) = packed_again(path)
        assert sample.images == [(tmp_path / "a.bmp").read_bytes()] and not report


@pytest.mark.parametrize("extension", ["mp4", "wav"])
def test_samples_with_other_media(tmp_path: Path, extension: str) -> None:
    path = make_tar(tmp_path / "0.tar", ("a.json", TEXT.replace(b"<image>", b"What?")), (f"a.{extension}", b"x"), *pair("b"))
    assert "samples are made of images and text" in read_all(path)["a"]
    assert [line["key"] for line in packed_again(path)[1]] == ["a"]


def test_a_caption_that_is_no_utf_8(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "0.tar", ("a.jpg", IMAGE), ("a.txt", "café".encode("latin-1")), ("b.jpg", IMAGE), ("b.txt", b"B")
    )
    assert "a: its caption is no UTF-8" in read_all(path)["a"]
    assert [line["key"] for line in packed_again(path)[1]] == ["a"]


def test_text_that_is_no_unicode_is_listed(tmp_path: Path, processor: EveProcessor) -> None:
    path = make_tar(tmp_path / "0.tar", ("a.jpg", IMAGE), ("a.json", rb'{"caption": "a circle \ud83d"}'), *pair("b"))
    (unusable,) = load_table([tmp_path], processor).unusable
    assert unusable.key == "a" and "half of a surrogate pair" in unusable.reason
    assert [line["key"] for line in packed_again(path)[1]] == ["a"]


# ---- archives


def test_tars_one_behind_the_other_are_read_to_the_last(tmp_path: Path) -> None:
    parts = [make_tar(tmp_path / f"{name}.part", *pair(name), *pair(f"{name}2")) for name in "abc"]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(part.read_bytes() for part in parts) + bytes(3 << 20))
    samples = read_all(path)
    assert list(samples) == ["a", "a2", "b", "b2", "c", "c2"] and all(one.images == [IMAGE] for one in samples.values())
    assert len(packed_again(path)[0]) == 6
    path.write_bytes(parts[0].read_bytes() * 2)
    with pytest.raises(ConfigError, match="do not stand next to each other, or it is there twice"):
        scan_shard(path)
    path.write_bytes(parts[0].read_bytes() + b"\0" * 512 + b"garbage" * 200)
    with pytest.raises(ConfigError, match="cut off or damaged after 2 samples"):
        scan_shard(path)
    again, rejected = packed_again(path.rename(tmp_path / "garbage.tar"))
    assert len(again) == 2 and "cut off or damaged" in rejected[0]["reason"]


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.tar", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (gzip.compress, r"is compressed \(gzip\).*gunzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, r"\(xz\)"),
        (zipped, "is an archive or a document"),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "unzstd"),
        (lambda data: b"PAR1" + data, "is a Parquet file: .*JSONL"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (lambda data: b"<!DOCTYPE html><html>", "was its download refused"),
        (lambda data: b"[]", "cannot be read"),
        (lambda data: b"", "cannot be read"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path: Path, wrap: Any, words: str) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(wrap(make_tar(path, *pair("a")).read_bytes()))
    with pytest.raises(ConfigError, match=words):
        index_shard(path)
    with pytest.raises(ConfigError, match=words):
        pack(PackJob(open_annotations(path), tmp_path / "out"))


@pytest.mark.parametrize(("wrap", "tool"), [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")])
def test_what_unpacks_it_does(tmp_path: Path, wrap: Any, tool: str) -> None:
    """Whatever the file is called: gunzip alone takes no name that ends in .tar."""
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    data = make_tar(tmp_path / "0.tar", *pair("a")).read_bytes()
    (tmp_path / "a 0.tar").write_bytes(wrap(data))
    with pytest.raises(ConfigError, match="unpack it first, with ") as refused:
        index_shard(tmp_path / "a 0.tar")
    subprocess.run(str(refused.value).partition("with ")[2], shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "NEW").read_bytes() == data


# ---- anything


NAMES = ("a", "b.c", "._a", "日本", "d/e", "./d/f", "..", "a b", "x" * 120, "\t", "", "a:b", "-", "CON", "é\u0301")
ENDS = (".json", ".jpg", ".txt", ".0.png", ".10.jpg", ".JSON", ".mp4", "", ".", ".jpeg.json", ".cls", ".heic", "..jpg")
DATA = (TEXT, IMAGE, b"", b"A cat.", b"{", b"[]", b"null", b'{"caption": "\\ud83d"}', IMAGE[:99], b"\xff", b"[" * 9999)


@pytest.mark.parametrize("seed", range(40))
def test_any_tar_is_read_or_refused(tmp_path: Path, processor: EveProcessor, seed: int) -> None:
    """Each key is a sample or has a reason, by the index as by packing again; what is packed reads back the same."""
    rng = random.Random(seed)
    members = []
    for _ in range(rng.randint(0, 6)):
        name = rng.choice(NAMES)
        ends = rng.sample(ENDS, rng.randint(1, 3)) if rng.random() < 0.6 else [".json", ".jpg"]
        members += [(name + end, rng.choice(DATA) if rng.random() < 0.7 else {".json": TEXT}.get(end, IMAGE)) for end in ends]
        if rng.random() < 0.2:
            members.append(
                member(name + rng.choice(ENDS), kind=rng.choice([b"1", b"2", b"5"]), target=rng.choice(NAMES) + ".jpg")
            )
    path = make_tar(tmp_path / "0.tar", *members, format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    data = bytearray(path.read_bytes())
    if rng.random() < 0.4:
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
    readable: dict[str, Sample | str] = {}
    try:
        readable = read_all(path)
        table = load_table([path], processor)
        unusable = {one.key for one in table.unusable}
        assert len(table) == len(readable) and {key for key, one in readable.items() if isinstance(one, str)} <= unusable
    except LitEveError as error:
        assert "\n" not in str(error)
    try:
        again, rejected = packed_again(path)
    except LitEveError as error:
        assert "\n" not in str(error)
        return
    if readable:
        kept = {sample.metadata["id"]: sample for sample in again}
        assert len(kept) + len(rejected) >= len(readable)
        for key, sample in kept.items():
            if not isinstance(readable[key], str):
                assert (sample.conversation, sample.images) == (readable[key].conversation, readable[key].images)
