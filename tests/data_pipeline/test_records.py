"""What records may be called and hold: images under common names or in the record itself; what is no image is refused."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_annotations import report_of, samples_of
from made_shards import photo
from PIL import Image

from lit_eve.cli import main
from lit_eve.data import ShardWriter
from lit_eve.data.annotations import open_annotations
from lit_eve.data.lengths import load_table
from lit_eve.data.pack import PackJob, pack
from lit_eve.data.shards import parse_text
from lit_eve.data.shards.index import index_shard
from lit_eve.errors import LitEveError, SampleError
from lit_eve.processing import EveProcessor, image_size, load_image
from lit_eve.processing.formats import FORMATS

IMAGE = photo(np.random.default_rng(0), 20, 30)
TEXT = base64.b64encode(IMAGE).decode()
URL = f"data:image/jpeg;base64,{TEXT}"


def talk(question: Any = "<image>\nWhat?") -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]


def packed(folder: Path, *records: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """Samples and report of records in JSONL."""
    (folder / "a.jpg").write_bytes(IMAGE)
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    job = PackJob(open_annotations(folder / "a.jsonl"), folder / "out", folder)
    try:
        pack(job)
    except LitEveError as error:
        assert "none of the" in str(error) and "\n" not in str(error)
        return [], report_of(folder / "out")
    return samples_of(folder / "out"), report_of(folder / "out")


# ---- names


@pytest.mark.parametrize(
    "record",
    [
        {"file_name": "a.jpg", "text": "A cat."},
        {"image": "a.jpg", "caption": "A cat.", "title": "other", "url": "https://example.org/a.jpg"},
        {"Image Path": "a.jpg", "Caption": "A cat."},
        {"filepath": "a.jpg", "title": "A cat."},
        {"img": "a.jpg", "conversations": talk()},
        {"images": ["a.jpg"], "image": "a.jpg", "conversations": talk()},
        {"filename": "a.jpg", "conversations": talk()},
        {"image": "a.jpg", "conversation": talk()},
        {"image": {"bytes": None, "path": "a.jpg"}, "caption": "A cat."},
        {"image": {"url": "a.jpg"}, "caption": "A cat."},
    ],
)
def test_images_under_common_names(tmp_path: Path, record: dict) -> None:
    ((sample,), report) = packed(tmp_path, record)
    assert sample.images == [IMAGE] and sample.conversation[1]["value"] == "A cat." and not report


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"video": "clip.mp4", "conversations": talk("<video>\nWhat happens?")}, "is about a video .key 'video'."),
        ({"video": "clip.mp4", "conversations": talk("What happens?")}, "is about a video"),
        ({"video": "clip.mp4", "image": "a.jpg", "conversations": talk()}, "is about a video"),
        ({"videos": ["clip.mp4"], "messages": [{"role": "user", "content": "Hi"}]}, "is about a video"),
        ({"Video Files": ["clip.mp4"], "conversations": talk("What happens?")}, "is about a video"),
        ({"audio": "clip.wav", "conversations": talk("What?")}, "is about a sound"),
        ({"conversations": talk("<video>\nWhat happens?")}, "place for <video>"),
        ({"conversations": talk("What happens?\n<video>")}, "place for <video>"),
        ({"conversations": talk("<audio>What is said?")}, "place for <audio>"),
        ({"conversations": talk("<Video>\nWhat happens?")}, "place for <video>"),
        ({"conversations": talk("Say <|video_pad|> what happens")}, "place for <video>"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}, {"role": "assistant", "content": "a"}]},
            "got 'video'",
        ),
        ({"img": "a.jpg", "conversations": talk("What?")}, "0 places for images .* but there are 1"),
        ({"image": "a.jpg", "images": ["b.jpg"], "conversations": talk()}, "'image' and 'images' name different images"),
        ({"image": "https://example.org/a.jpg", "caption": "A cat."}, "this is a URL; download the images first"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, record: dict, words: str) -> None:
    samples, (line,) = packed(tmp_path, record)
    assert not samples
    with pytest.raises(ValueError, match=words):
        raise ValueError(line["reason"])
    if "messages" not in record and "img" not in record and "image" not in record:  # the same for shards of others
        with pytest.raises(SampleError, match=f"^key: .*{words}"):
            parse_text("key", {"json": json.dumps(record).encode()})


@pytest.mark.parametrize("question", ["How do I use <video> in HTML?", "<video>\n<source>\n</video>\nWhy?", "<b>\nWhat?"])
def test_html_is_text(tmp_path: Path, question: str) -> None:
    samples, report = packed(tmp_path, {"conversations": talk(question), "video": None, "audio": [], "file": "page.html"})
    assert len(samples) == 1 and not report


def test_shards_that_name_images_which_they_do_not_hold(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write({"id": "a", "conversations": talk("What?"), "images": ["a.jpg"]})
    index = index_shard(writer.shards[0])
    from lit_eve.data import ShardReader

    with pytest.raises(SampleError, match="a: its JSON names 1 images, but the shard holds 0 .key 'images'."):
        ShardReader(writer.shards).read(0, int(index.offset[0]), int(index.size[0]))


# ---- pictures in the record


@pytest.mark.parametrize(
    "record",
    [
        {"image": URL, "caption": "A cat."},
        {"image": TEXT, "caption": "A cat."},
        {"image": {"bytes": TEXT, "path": "gone.jpg"}, "caption": "A cat."},
        {"image": {"bytes": list(IMAGE), "path": None}, "caption": "A cat."},
        {"images": [{"base64": TEXT}], "conversations": talk()},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "What?"}],
                },
                {"role": "assistant", "content": "A cat."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "base64": TEXT}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": "A cat."},
            ]
        },
    ],
)
def test_pictures_in_the_record(tmp_path: Path, processor: EveProcessor, record: dict) -> None:
    """They become files of the shard; what is left of the record has them no more."""
    ((sample,), report) = packed(tmp_path, record)
    assert sample.images == [IMAGE] and not report and sample.metadata["image"].endswith(".jpg")
    assert len(json.dumps([sample.metadata, sample.conversation])) < 400
    assert not load_table([tmp_path / "out"], processor).unusable


def test_reasons_hold_no_pictures(tmp_path: Path) -> None:
    broken = "data:image/png;base64," + "!" * 5000
    other = base64.b64encode(b"x" * 5000).decode()
    entries = [broken, other, {"bytes": other}, {"base64": "?" * 5000}, {"bytes": [300] * 5000}, {"url": broken}, "y/" * 2500]
    entries += [f"data:image/png;base64,{other}", "data:nothing" * 500, {"nothing": other}]
    records = [{"id": str(i), "image": entry, "caption": "A cat."} for i, entry in enumerate(entries)]
    samples, report = packed(tmp_path, *records, {"id": "s", "image": URL, "conversations": talk("none")})
    assert not samples and len(report) == len(records) + 1
    assert all(len(json.dumps(line)) < 500 for line in report)


def test_reasons_name_the_place_and_the_image(tmp_path: Path) -> None:
    (tmp_path / "b.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    two = {"image": ["a.jpg", "b.eps"], "conversations": talk("<image><image>")}
    samples, report = packed(tmp_path, {"image": "b.eps", "caption": "A."}, two, {"image": "a.jpg", "caption": "A cat."})
    assert len(samples) == 1 and [line["line"] for line in report] == [1, 2]
    assert [line["image"] for line in report] == ["b.eps", ["a.jpg", "b.eps"]]
    assert all(line["reason"].startswith("b.eps: the image cannot be opened: it is no image") for line in report)


# ---- formats


def test_every_format_goes_through_or_is_refused(tmp_path: Path) -> None:
    Image.init()
    base = Image.effect_noise((32, 48), 60).convert("RGB")
    records, contents, refused = [], {}, []
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "F", "I", "LAB"):
            buffer = io.BytesIO()
            try:
                (base.convert("L").convert(mode) if mode in "FI" else base.convert(mode)).save(buffer, kind)
            except Exception:  # Pillow does not write it
                continue
            name = f"{kind}_{mode}"
            (tmp_path / name).write_bytes(buffer.getvalue())
            records.append({"id": name, "image": name, "caption": "A cat."})
            contents[name] = buffer.getvalue()
            try:
                load_image(buffer.getvalue())
            except SampleError:
                refused.append(name)
    samples, report = packed(tmp_path, *records)
    assert [line["id"] for line in report] == refused and len(samples) + len(refused) == len(records)
    assert {name.partition("_")[0] for name in refused} == {"EPS", "PDF", "PALM", "ICNS", "IM", "SPIDER", "TIFF"}
    assert {sample.metadata["id"].partition("_")[0] for sample in samples} <= FORMATS.keys() | {"MPO"}
    sizes = [
        size for path in (tmp_path / "out").glob("*.tar") for size in index_shard(path).image_wh.tolist() if size != [0, 0]
    ]
    assert sizes == [list(image_size(contents[sample.metadata["id"]])) for sample in samples]
    assert all(sample.images == [contents[sample.metadata["id"]]] for sample in samples)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr", "F", "I", "I;16", "La", "RGBX", "HSV"])
def test_open_images_are_written_without_loss(tmp_path: Path, mode: str) -> None:
    base = Image.effect_noise((20, 30), 60)
    image = {
        "I;16": lambda: Image.fromarray(np.asarray(base).astype(np.uint16) * 257),
        "La": lambda: base.convert("LA").convert("La"),
    }
    image = image.get(mode, lambda: (base if mode in "FI" else base.convert("RGB")).convert(mode))()
    with ShardWriter(tmp_path) as writer:
        try:
            writer.write({"id": "a", "conversations": talk()}, [image])
        except SampleError as error:
            assert mode in ("La", "HSV") and "no format keeps the mode" in str(error)
            return
    (sample,) = samples_of(tmp_path)
    assert np.array_equal(np.asarray(load_image(sample.images[0])), np.asarray(load_image(image)))


def test_open_images_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.effect_noise((20, 30), 60).save(buffer, "JPEG", exif=exif)
    with ShardWriter(tmp_path) as writer:
        writer.write({"id": "a", "conversations": talk()}, [Image.open(buffer)])
    (sample,) = samples_of(tmp_path)
    assert np.array_equal(np.asarray(load_image(sample.images[0])), np.asarray(load_image(buffer.getvalue())))


# ---- going on


def test_a_call_that_packed_nothing_does_not_block_the_repaired_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["pack", f"--annotations={tmp_path / 'a.json'}", f"--output={tmp_path / 'out'}", "--processes=1"]
    for text in ("", "{", '[{"image": "gone.jpg", "caption": "A cat."}]', "[1, 2]", '{"data": [{}]}'):
        (tmp_path / "a.json").write_text(text)
        assert main(arguments) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.jpg", "caption": "A cat."}] * 2))
    assert main(arguments) == 0 and len(samples_of(tmp_path / "out")) == 2
    assert report_of(tmp_path / "out") == []
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a.jpg", "caption": "A cat."}]))
    assert main(arguments) == 2 and "choose another folder, or remove this one" in capsys.readouterr().err


# ---- anything


def anything(rng: random.Random, depth: int = 0) -> Any:
    texts = [
        "a.jpg",
        "",
        "<image>",
        "<image>\nWhat?",
        "\ud83d",
        "human",
        "gpt",
        "x" * 300,
        "日本",
        URL,
        TEXT,
        "../a.jpg",
        "\0",
        "http://x/y",
    ]
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 3:
        return rng.choice(texts)
    if kind < 6:
        return rng.choice([None, True, 0, -1.5, 10**30, float("nan")])
    if kind == 6:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    keys = ["from", "value", "role", "content", "type", "text", "image", "path", "bytes", "url", "base64", "\ud83d"]
    return {rng.choice(keys): anything(rng, depth + 1) for _ in range(rng.randint(0, 4))}


@pytest.mark.parametrize("seed", range(12))
def test_any_json_is_a_sample_or_in_the_report(tmp_path: Path, processor: EveProcessor, seed: int) -> None:
    rng = random.Random(seed)
    keys = [
        "id",
        "image",
        "images",
        "conversations",
        "messages",
        "caption",
        "text",
        "file_name",
        "video",
        "img",
        "Image",
        "url",
    ]
    records = []
    for _ in range(60):
        record = {key: anything(rng) for key in rng.sample(keys, rng.randint(0, 5))}
        if rng.random() < 0.5:
            record |= {"image": rng.choice(["a.jpg", URL, ["a.jpg"], anything(rng)]), "caption": "A cat."}
        if rng.random() < 0.3:
            record["conversations"] = talk(rng.choice(["<image>", "What?", anything(rng)]))
        records.append(record if rng.random() < 0.95 else anything(rng))
    samples, report = packed(tmp_path, *records)
    assert len(samples) + len(report) == len(records) and all(line["reason"] for line in report)
    table = load_table([tmp_path / "out"], processor)
    assert len(table) == len(samples) and all(one.reason for one in table.unusable)
    for sample in samples:
        assert all(load_image(image).size == (20, 30) for image in sample.images)
