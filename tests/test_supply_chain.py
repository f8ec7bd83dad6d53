"""What is installed: versions that are known, files that are checked, nothing that was uploaded to do harm."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parents[1]
HARMFUL = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}  # uploads of 30 April 2026


def pinned(path: str) -> dict[str, str]:
    """Versions by name, as pip compares names."""
    rows = re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / path).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in rows}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in [*project["dependencies"], *extras]]


def of_conda() -> list[Requirement]:
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    found = []
    for line in next(part["pip"] for part in parts if isinstance(part, dict)):
        try:
            found.append(Requirement(line))
        except InvalidRequirement:  # an option
            continue
    return found


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("read", [declared, of_conda])
def test_harmful_uploads_are_excluded_by_name(name, read):
    (requirement,) = [requirement for requirement in read() if requirement.name == name]
    for version in HARMFUL[name]:
        assert not requirement.specifier.contains(version)
        assert version not in (pinned("constraints.txt")[name], pinned("constraints.hashes.txt")[name])
    assert requirement.specifier.contains("2.6.1") and requirement.specifier.contains(pinned("constraints.txt")[name])


def test_every_version_has_the_hashes_of_its_files():
    versions = pinned("constraints.txt")
    del versions["torch"]  # a CPU build has others
    assert pinned("constraints.hashes.txt") == versions, "run `make hashes`"
    text = (ROOT / "constraints.hashes.txt").read_text()
    assert "://" not in text
    for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry.split()[0]


EXTRAS = {"requirements-demo.txt": "gradio", "requirements-notebooks.txt": "jupyterlab"}


@pytest.mark.parametrize(("path", "package"), EXTRAS.items())
def test_an_extra_adds_to_what_is_installed_and_has_hashes(path, package):
    versions = pinned(path)
    assert package in versions and not versions.keys() & pinned("constraints.txt").keys(), "run `make hashes`"
    text = (ROOT / path).read_text()
    assert "://" not in text
    for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry.split()[0]
    for requirement in declared():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name not in versions or requirement.specifier.contains(versions[name]), str(requirement)


def test_extras_fit_together():
    demo, notebooks = map(pinned, EXTRAS)
    shared = demo.keys() & notebooks.keys()
    assert shared and {name: demo[name] for name in shared} == {name: notebooks[name] for name in shared}, "run `make hashes`"


def test_the_versions_that_are_installed_are_allowed():
    versions = pinned("constraints.txt")
    for requirement in declared():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name not in versions or requirement.specifier.contains(versions[name]), str(requirement)


@pytest.mark.parametrize(("arguments", "checks"), [([], True), (["HASHES=no"], False)])
def test_make_setup_checks_hashes_before_anything_else(arguments, checks):
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    installs = [line for line in shown.splitlines() if " -m pip install" in line]
    assert ("--require-hashes --requirement constraints.hashes.txt" in installs[0]) == checks
    assert len(installs) == 2 and "--no-build-isolation --constraint constraints.txt --editable" in installs[1]


def test_workflows_name_the_versions_of_their_actions():
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    used = [line.split("uses:")[1].split()[0] for file in files for line in file.read_text().splitlines() if "uses:" in line]
    assert used and all(re.fullmatch(r"[\w./-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", action) for action in used)
    jobs = {job for file in files for job in yaml.safe_load(file.read_text())["jobs"]}
    assert {"test", "audit"} <= jobs
