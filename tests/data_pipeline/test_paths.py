"""Shards by whatever path a user gives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from made_shards import write_shards

from lit_eve.cli import main
from lit_eve.data import EveDataModule
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names_of(path: object) -> list[str]:
    return [shard.name for shard in list_shards(path)]


FOLDERS = ["captions [v2]", "a*b?", "{x,y}", "{", "ünïcode 日本", "one::two", "~", "%d", "-", "caf\udce9"]


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_folders_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str) -> None:
    """Indexed, packed again from and to there, and trained on: as a folder, as a file, relative and through a link."""
    folder = tmp_path / name
    try:
        write_shards(folder, 3)
    except (OSError, UnicodeError):
        pytest.skip("the file system does not know such names")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    given = f"./{name}" if name.startswith("~") else name
    for path in (
        folder,
        f"{folder}/",
        folder / "shard-000000.tar",
        f"{given}/shard-000000.tar",
        "link",
        "link/shard-000000.tar",
        *(() if "::" in name else (f"{given}/*.tar", f"{folder}/shard-{{000000..000000}}.tar", f"{given}/*[0]{{.tar,.tar}}")),
    ):
        assert set(names_of(path)) == {"shard-000000.tar"}
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (folder / "a.json").write_text(json.dumps([{"id": "a", "conversations": talk}]))
    output = f"{given}/out [1]"
    for source, target in ((f"{given}/a.json", output), (output, f"{output}/again"), (f"./{given}", f"{given}/third")):
        assert main(["pack", f"--annotations={source}", f"--output={target}", "--processes=1"]) == 0, capsys.readouterr().err
        assert main(["pack", f"--annotations={target}", "--processes=1"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("name", ["captions [v2]", "caf\udce9"], ids=ascii)
def test_training_data_of_any_name(tmp_path: Path, processor: EveProcessor, name: str) -> None:
    write_shards(tmp_path / name, 3)
    data = EveDataModule(train=f"{tmp_path / name}/shard-000000.tar", validation=str(tmp_path / name), num_workers=0)
    data.attach(processor).setup()
    assert len(data.samples("train")) == len(data.samples("validation")) == 3


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "d", "0.tar", "1.tar")
    for path, count in (
        ("~/d", 2),
        ("~/d/", 2),
        ("~/d/0.tar", 1),
        ("~/d/*.tar", 2),
        ("~/d/{0,1}.tar", 2),
        ("~/d/0.tar::~/d", 3),
    ):
        assert len(list_shards(path)) == count


def test_wildcards_braces_and_unions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a", *(f"shard-{i:06d}.tar" for i in range(12)), "._shard-000000.tar")
    touch(tmp_path / "b", "x.tar")
    numbers = lambda *values: [f"shard-{i:06d}.tar" for i in values]  # noqa: E731
    for path, expected in [
        ("a/shard-{000000..000003}.tar", numbers(0, 1, 2, 3)),
        ("a/shard-{000010..000009}.tar", numbers(10, 9)),
        ("a/shard-00000{1,3}.tar", numbers(1, 3)),
        ("a/shard-{000003..000004}.tar::b/x.tar", [*numbers(3, 4), "x.tar"]),
        ("b/x.tar::a/*1.tar", ["x.tar", *numbers(1, 11)]),
        ("{b,a}/[xs]*0.tar::b", None),
        ("b::a/shard-0000{10,11}.tar", ["x.tar", *numbers(10, 11)]),
        ("a", numbers(*range(12))),
        ("a/*.tar", numbers(*range(12))),
    ]:
        if expected is None:
            with pytest.raises(ConfigError, match="b/.*does not exist"):
                list_shards(f"{tmp_path}/{path}")
        else:
            assert names_of("::".join(f"{tmp_path}/{piece}" for piece in path.split("::"))) == expected
    monkeypatch.chdir(tmp_path / "a")
    data = EveDataModule(train="../b/x.tar::../a/shard-000001.tar")
    assert names_of(data.sources["train"][0].path) == ["x.tar", "shard-000001.tar"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a/shard-{0..3}.tar", "shard-2.tar does not exist"),
        ("a/shard-{0..3.tar", "Unbalanced braces"),
        ("a/none-*.tar", "no file has such a name"),
        ("none", "none does not exist"),
        ("a/shard-0.tar::none.tar", "none.tar does not exist"),
        ("s3://bucket/shard-{000000..000009}.tar", "is no file of this machine"),
        ("pipe:cat x.tar", "is no file of this machine"),
        ("empty", r"empty holds no shards \(\*.tar\)$"),
        ("deep", "holds no shards .*but its folder 00000 does"),
        ("texts", "holds no shards .*named as a file, such as .*captions.csv"),
        ("packed", r"packed holds 0.tar.gz and 1 more, compressed.*unpack"),
        ("some", r"some holds 1.tar.gz, compressed"),
        ("broken.tar", "broken.tar is a link to gone.tar, which does not exist"),
        ("", "the path is empty"),
    ],
)
def test_paths_without_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a", "shard-0.tar", "shard-1.tar")
    touch(tmp_path / "empty", "._x.tar")
    touch(tmp_path / "deep" / "00000", "0.tar")
    touch(tmp_path / "texts", "captions.csv")
    touch(tmp_path / "packed", "0.tar.gz", "1.tgz")
    touch(tmp_path / "some", "0.tar", "0.tar.gz", "1.tar.gz")
    os.symlink("gone.tar", "broken.tar")
    with pytest.raises(ConfigError, match=words) as error:
        list_shards(path)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "some")
