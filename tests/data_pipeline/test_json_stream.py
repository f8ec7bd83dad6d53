"""JSON larger than memory: the same elements as json.load, from any place on; damage is named and costs nothing before it."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_eve.data.annotations import json_stream
from lit_eve.data.annotations.json_stream import ArrayReader, LineReader
from lit_eve.errors import ConfigError

ELEMENTS = [
    {"id": "1", "text": "[{\\\"'é日本🙂,]}", "deep": [[[{"a": [1, 2.5e-3, None, True]}]]]},
    "a name",
    -12.5,
    123456,
    [],
    {},
    None,
    {"id": 2, "value": 'quoted " and \n', "n": 7},
]
LAYOUTS = {
    "compact": lambda elements: json.dumps(elements, separators=(",", ":")),
    "indented": lambda elements: json.dumps(elements, indent=4, ensure_ascii=False),
    "a line each": lambda elements: "[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in elements) + "\n]\n\n",
    "byte order mark": lambda elements: "\ufeff \n" + json.dumps(elements, ensure_ascii=False),
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, *place: int) -> list[Any]:
    with ArrayReader(path, *place) as reader:
        return list(reader)


def read_until_broken(path: Path) -> tuple[list[Any], str]:
    found: list[Any] = []
    with ArrayReader(path) as reader, pytest.raises(ConfigError) as error:
        for element in reader:
            found.append(element)
    return found, str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 2, 5, 64, 1 << 20])
def test_same_elements_from_any_place_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, chunk: int) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = write(tmp_path / "a.json", LAYOUTS[layout](ELEMENTS))
    data = path.read_bytes()
    with ArrayReader(path) as reader:
        for number, element in enumerate(reader, 1):
            assert element == ELEMENTS[number - 1] and reader.number == number
            assert data[: reader.offset].decode().endswith(("}", "]", "e", "l", '"', "5", "6"))  # right behind the element
            assert read(path, reader.offset, number) == ELEMENTS[number:]
        assert list(reader) == []  # the end stays the end, whatever blanks follow it
    assert reader.number == len(ELEMENTS)


@pytest.mark.parametrize("text", ["[]", " [ \n ] ", "\ufeff[]"])
def test_empty_array(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path / "a.json", text)) == []


def test_a_record_larger_than_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 1000)
    elements = [{"id": 0}, {"text": 'é["' * 200_000}, {"id": 2}]
    assert read(write(tmp_path / "a.json", json.dumps(elements, ensure_ascii=False))) == elements


def test_cut_off_at_any_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 16)
    records = [{"id": i, "text": 'aé\\"[,日'} for i in range(4)]
    whole = json.dumps(records, ensure_ascii=False).encode()
    for size in range(len(whole)):
        found, message = read_until_broken(write(tmp_path / "a.json", whole[:size]))
        complete = sum(len(json.dumps(records[: n + 1], ensure_ascii=False).encode()) - 1 <= size for n in range(4))
        assert found == records[:complete]
        assert str(tmp_path / "a.json") in message and f"after {complete} records" in message
        assert size == 0 or "cut off" in message or "no UTF-8" in message or "cannot be read" in message


@pytest.mark.parametrize(
    ("text", "found", "message"),
    [
        ('{"data": [1]}', 0, "byte 0, after 0 records: a list of records"),
        ("", 0, "a list of records .* should begin here .*is it cut off"),
        ('[{"a": 1} {"a": 2}]', 1, "byte 10, after 1 records: a comma"),
        ('[{"a": 1}, ]', 1, "byte 11, after 1 records: this record cannot be read: Expecting value"),
        ('[{"a": 1}, {"a": x}]', 1, "byte 11, after 1 records: this record cannot be read"),
        ('[{"a": 1}][{"a": 2}]', 1, "byte 10, after 1 records: something follows the end"),
        ('[{"é": 1}, {"a": 2', 1, "byte 12, after 1 records: this record cannot be read"),
        (b'[{"a": 1}, {"a": "\xff"}]', 1, "after 1 records: byte 18 is no UTF-8"),
        ("[{}," + "[" * 100_000, 1, "after 1 records"),
    ],
)
def test_damage_is_named_and_costs_nothing_before_it(tmp_path: Path, text: str | bytes, found: int, message: str) -> None:
    elements, error = read_until_broken(write(tmp_path / "a.json", text))
    assert len(elements) == found
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(error)


def test_a_missing_quote_does_not_read_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 1000)
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 1 << 20)
    path = write(tmp_path / "a.json", '[{"a": 1}, {"a": "' + "x" * 5_000_000 + "]")
    with ArrayReader(path) as reader:
        assert next(reader) == {"a": 1}
        with pytest.raises(ConfigError, match="byte 11, after 1 records: this record does not end within 1 MiB"):
            next(reader)
        assert reader._file.tell() < 3_000_000


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"é": 2}\r\n{"a": 3}')
    with LineReader(path) as reader:
        lines = list(islice(reader, 2))
        assert lines == [b'{"a": 1}\n', b"\n"] and reader.number == 2
    with LineReader(path, reader.offset, 2) as rest:
        assert [json.loads(line) for line in rest] == [{"é": 2}, {"a": 3}] and rest.number == 4
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 9)
    with LineReader(path) as reader, pytest.raises(ConfigError, match="line 3 is longer"):
        list(reader)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_memory_is_that_of_one_record(tmp_path: Path) -> None:
    """200 MB on disk, some 350 MB as Python objects, must pass through a few MB."""
    words = " ".join(np.random.default_rng(0).choice(["red", "blue", "circle", "square"], 100))
    record = {"image": "coco/1.jpg", "conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": words}] * 5}
    text = json.dumps(record)
    count = 200_000_000 // len(text)
    path = tmp_path / "a.json"
    with open(path, "w") as file:
        file.write("[" + text)
        for _ in range(count - 1):
            file.write(",\n" + text)
        file.write("]")
    # not ru_maxrss: a child's begins with what its parent had, here pytest
    code = f"""
import re, runpy; from pathlib import Path
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
module = runpy.run_path({json_stream.__file__!r})  # alone: torch and the like take seconds to import
before = peak()
with module["ArrayReader"](Path({str(path)!r})) as reader:
    print(sum(1 for _ in reader), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, grown = map(int, done.stdout.split())
    assert path.stat().st_size > 195_000_000 and number == count
    assert 0 < grown < 20  # MiB
