"""Captions in CSV and TSV files: found by the names of the columns, every row a sample or in the report."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_annotations import report_of, samples_of
from made_shards import photo

from lit_eve.cli import main
from lit_eve.data.annotations import open_annotations
from lit_eve.data.pack import PackJob, pack
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor

IMAGE = photo(np.random.default_rng(0), 20, 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("1.jpg", "2.jpg", "3, four.jpg"):
        (tmp_path / "photos" / name).write_bytes(IMAGE)
    return tmp_path


def packed(path: Path, count: int = 2, processes: int = 1) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """(image, caption) of the samples, and the report. Blocks are short, so that most begin inside of the file."""
    output = path.parent / f"{path.name}.out"
    pack(PackJob(open_annotations(path), output, path.parent, samples_per_shard=count), processes=processes)
    samples = samples_of(output)
    assert all(sample.images == [IMAGE] and sample.conversation[0]["value"] == "<image>" for sample in samples)
    name = lambda sample: next(sample.metadata[key] for key in sample.metadata if key.lower() in NAMES)  # noqa: E731
    return [(name(sample), sample.conversation[1]["value"]) for sample in samples], report_of(output)


NAMES = ("image", "file_name", "image path", "filepath")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'image,caption\nphotos/1.jpg,A cat.\n"photos/3, four.jpg","A dog, ""two"" cats\nand a bird."\n'),
        (
            "a.csv",
            '\ufeff"image","caption"\r\n"photos/1.jpg",A cat.\r\n\r\n"photos/3, four.jpg","A dog, ""two"" cats\nand a bird."',
        ),
        ("a.tsv", 'caption\tfile_name\nA cat.\tphotos/1.jpg\n"A dog, ""two"" cats\nand a bird."\tphotos/3, four.jpg\n'),
        ("a.csv", 'Image Path;id;Text\nphotos/1.jpg;x;A cat.\nphotos/3, four.jpg;y;"A dog, ""two"" cats\nand a bird."\n'),
        ("a.CSV", ",filepath|Title\n0,photos/1.jpg|A cat.\n".replace("0,", "").replace(",", "")),
    ],
)
def test_tables_of_all_kinds(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, newline="")
    expected = [("photos/1.jpg", "A cat."), ("photos/3, four.jpg", 'A dog, "two" cats\nand a bird.')]
    rows, report = packed(folder / name, 1)
    assert rows == expected[: len(rows)] and len(rows) == (1 if "|" in text else 2) and not report


def test_tabs_with_quotes_that_are_but_characters(folder: Path) -> None:
    lines = [
        "image\tcaption",
        'photos/1.jpg\t"Hello", he said',
        'photos/2.jpg\t5" wide',
        'photos/1.jpg\t"open',
        "photos/2.jpg\ta",
    ]
    (folder / "a.tsv").write_text("\n".join(lines))
    rows, report = packed(folder / "a.tsv")
    assert rows == [tuple(line.split("\t")) for line in lines[1:]] and not report


def test_tabs_and_quotes_that_can_be_read_in_two_ways(folder: Path) -> None:
    (folder / "a.tsv").write_text('caption\timage\nA cat.\tphotos/1.jpg\n"a\tphotos/1.jpg\nb"\tphotos/2.jpg\n')
    rows, (line,) = packed(folder / "a.tsv")
    assert rows == [("photos/1.jpg", "A cat.")] and "by its quotes this is one row, by its tabs 2" in line["reason"]


def test_rows_that_are_none(folder: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        "image,caption",
        "photos/1.jpg,A cat, a dog",
        "photos/1.jpg",
        "",
        ",A cat.",
        "photos/1.jpg,",
        "photos/gone.jpg,A cat.",
    ]
    rows += ["https://example.org/1.jpg,A cat.", "photos/1.jpg,A\rcat", 'photos/1.jpg,"A "cat"', "photos/2.jpg,fine"]
    (folder / "a.csv").write_bytes("\n".join(rows).encode() + b"\nphotos/1.jpg,caf\xe9\n")
    good, report = packed(folder / "a.csv", 3)
    assert good == [("photos/2.jpg", "fine")]
    assert [line["row"] for line in report] == [2, 3, 5, 6, 7, 8, 9, 10, 12]
    for line, words in zip(
        report,
        [
            "has 3 cells, but the first line names 2 columns; is one of its commas not in quotes?",
            "has 1 cells",
            "there are 0 images",
            "no caption",
            "photos/gone.jpg: there is no such image file",
            "this is a URL; download the images first",
            "the row cannot be read: a carriage return stands outside of quotes",
            "the row cannot be read",
            "is no UTF-8",
        ],
        strict=True,
    ):
        assert words in line["reason"]
    assert report[4]["image"] == "photos/gone.jpg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"photos/1.jpg,A cat.\n", "its first line should name a column of images .* but it names: photos/1.jpg, A cat."),
        (b"image,label\na,b\n", "one of captions"),
        (b"", "its first line should name"),
        (b"image,image,caption\n", "names a column twice"),
        (b"im\xe4ge,caption\n", "no UTF-8"),
        ("image,caption\n".encode("utf-16"), "is written in UTF-16"),
    ],
)
def test_tables_without_columns_leave_nothing(folder: Path, capsys: pytest.CaptureFixture, text: bytes, words: str) -> None:
    (folder / "a.csv").write_bytes(text)
    arguments = ["pack", f"--annotations={folder / 'a.csv'}", f"--output={folder / 'out'}", "--processes=1"]
    assert main(arguments) == 2 and not (folder / "out").exists()
    with pytest.raises(ConfigError, match=words):
        raise ConfigError(capsys.readouterr().err)
    (folder / "a.csv").write_text("image,caption\nphotos/1.jpg,A cat.\n")
    assert main(arguments) == 0


def test_a_quote_that_is_not_closed_ends_the_table(folder: Path) -> None:
    (folder / "a.csv").write_text('image,caption\nphotos/1.jpg,A cat.\nphotos/1.jpg,"A dog.\nphotos/2.jpg,A bird.\n')
    with pytest.raises(ConfigError, match="row 3, byte 34: a quote that opens .*the 1 samples before it are packed"):
        packed(folder / "a.csv")
    assert len(samples_of(folder / "a.csv.out")) == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_was_written_is_read(folder: Path, processor: EveProcessor, seed: int) -> None:
    """Any captions, in any dialect of the csv module."""
    rng = random.Random(seed)
    alphabet = "ab,;|\t\"\n\r '\\é日\u2028\U0001f600"
    delimiter = rng.choice(",;|\t")
    alphabet = alphabet.replace("\t", "") if delimiter == "\t" else alphabet
    quoting, end = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), rng.choice(["\n", "\r\n"])
    if (quoting, end) == (csv.QUOTE_MINIMAL, "\n"):  # the module forgets the quotes around these, and cannot read them either
        alphabet = alphabet.replace("\r", "")
    table = [
        (
            rng.choice(["photos/1.jpg", "photos/2.jpg", "photos/3, four.jpg"]),
            "".join(rng.choices(alphabet, k=rng.randint(1, 12))),
        )
        for _ in range(rng.randint(1, 12))
    ]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("image", "caption"), *table])
    path = folder / rng.choice(["a.csv", "a.tsv"])
    path.write_bytes(file.getvalue().encode())
    expected = [(name, caption.strip()) for name, caption in table if caption.strip()]
    if not expected:
        return
    rows, report = packed(path, rng.randint(1, 5))
    assert rows == expected and len(report) == len(table) - len(expected)


def test_spreadsheets_and_columns_of_numbers(tmp_path: Path) -> None:
    for name, data, words in [
        ("a.parquet", b"PAR1xxxx", "Parquet file: turn it into JSONL"),
        ("a.xlsx", b"PK\x03\x04xx", "save it as CSV"),
        ("a.json.gz", b"\x1f\x8bxx", "gunzip .*a.json.gz"),
        ("a.csv", b"\x1f\x8bxx", "gunzip"),
        ("a.json", b"\xff\xfe[\0]\0", "UTF-16"),
        ("b.json", b'{"data": [{"image": "a.jpg", "caption": "A cat."}]}', r"one JSON object with lists in it \(data\)"),
        ("c.json", json.dumps({"images": [], "annotations": []}, indent=1).encode(), "one JSON object"),
        ("d.json", json.dumps({"images": [], "annotations": []}).encode(), r"\(images, annotations\)"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=words):
            open_annotations(tmp_path / name)


def test_a_table_of_another_name_is_told_which_names_tables_have(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("image,caption\na.jpg,A cat.\n")
    with pytest.raises(ConfigError, match=r"a list of records \[...\] should begin here; a table is named .csv or .tsv"):
        pack(PackJob(open_annotations(tmp_path / "a.txt"), tmp_path / "out", tmp_path))
