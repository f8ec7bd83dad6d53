"""Paths as users write them, against what the system itself makes of them."""

from __future__ import annotations

import getpass
import os
import subprocess

import pytest

from lit_eve.errors import ConfigError
from lit_eve.files import local_path, output_folder, same_path


def in_shell(text: str) -> str:
    """The place that a shell's ``cd`` leads to."""
    return subprocess.run(["sh", "-c", f"cd {text} && pwd -P"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A home folder and a working directory with folders of all sorts of names."""
    home, here = tmp_path / "home", tmp_path / "here"
    (home / "runs").mkdir(parents=True)
    (here / "far" / "away").mkdir(parents=True)
    for name in ("a b", "c [v2]", "größe", "~odd", "d$HOME", "runs"):
        (here / name).mkdir()
    (here / "link").symlink_to("far/away")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize(
    ("text", "shell"),
    [
        ("~", "~"),
        ("~/runs", "~/runs"),
        ("~/runs/", "~/runs"),
        ("runs///", "runs"),
        ("./runs/.", "runs"),
        ("../here/runs", "runs"),
        ("link/..", "link && cd -P .."),  # the parent of what the link points to
        ("link", "link"),
        ("a b", "'a b'"),
        ("c [v2]", "'c [v2]'"),
        ("größe/", "größe"),
        ("./~odd", "./~odd"),
        ("d$HOME", "'d$HOME'"),
    ],
)
def test_a_path_is_where_the_system_finds_it(text, shell):
    once = local_path(text)
    assert os.path.realpath(once) == in_shell(shell)
    assert local_path(once) == once
    assert os.path.normpath(os.path.expanduser(once)) == once, "Lightning's trainer does this to its folder"
    assert same_path(text, once)


def test_the_home_of_a_user():
    user = getpass.getuser()
    assert local_path(f"~{user}/x") == os.path.join(os.path.expanduser(f"~{user}"), "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nobody_is_called_so/x", "model.teacher: .*there is no user 'nobody_is_called_so'.*written ./~nobody_is_called_so"),
        ("$HOME/x", r"model.teacher: '\$HOME/x' does not exist, and \$HOME is not replaced here"),
        ("${HOME}/x", r"\$\{HOME\} is not replaced here"),
        (" ", "model.teacher: the path is empty"),
    ],
)
def test_a_path_that_cannot_be_meant(text, message):
    with pytest.raises(ConfigError, match=message):
        local_path(text, "model.teacher")


def test_a_folder_to_write_in(folders, tmp_path, monkeypatch):
    (folders / "file").write_text("")
    assert output_folder("~/new/run") == str(tmp_path / "home/new/run") and not (tmp_path / "home/new").exists()
    for text, message in {
        "file": "--output: file is no folder$",
        "file/a/b": "--output: file is no folder, so that file/a/b cannot be made",
        "s3://bucket/run": "--output: s3://bucket/run is no folder of this machine",
        "~nobody_is_called_so": "there is no user",
    }.items():
        with pytest.raises(ConfigError, match=message):
            output_folder(text, "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "runs")  # root may write everywhere
    with pytest.raises(ConfigError, match="runs/new cannot be written: this user may not write in runs"):
        output_folder("runs/new")


def test_what_is_no_path_of_this_machine():
    for name in ("BAAI/EVE-7B-v1.0", "s3://bucket/run", "https://host/~user/x.png"):
        assert local_path(name) == name


def test_relative_to_a_folder(folders):
    assert local_path("../runs", folder="far") == str(folders / "runs")
    assert local_path("~/runs", folder="far") == os.path.expanduser("~/runs")
