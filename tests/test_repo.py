"""The repository keeps its own promises: paths, links, targets, import order, light import, declared dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_eve"

# A folder imports only from those in front of it. docs/architecture.md says why.
ORDER = [
    *("errors", "files", "records", "markdown", "bars", "imports", "registry", "plotting", "processing", "vision_towers"),
    *("losses", "data", "models", "interpretation", "training", "planning", "testing", "evaluation", "demo", "nano"),
    *("sweeps", "cli"),
]
NO_LIGHTNING = (*ORDER[: ORDER.index("data")], "models")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.md")])
MODULES = sorted(PACKAGE.rglob("*.py"))

name_of = lambda path: str(path.relative_to(ROOT))  # noqa: E731


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in a file, also those inside functions; names of packages are resolved to modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            if node.module == "lit_eve":
                yield from ((f"lit_eve.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("no git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# ---- the package


def test_what_a_function_imports_is_there():
    """An import inside a function fails when that is called, and not before."""
    missing = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lit_eve":
                missing += [
                    f"{name_of(path)}:{node.lineno} {alias.name}"
                    for alias in node.names
                    if not is_there(node.module, alias.name)
                ]
    assert not missing


def is_there(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name) or bool(import_module(f"{module}.{name}"))
    except ModuleNotFoundError as error:
        return not error.name.startswith("lit_eve")  # an extra, such as Gradio


def test_import_is_light():
    code = "import sys, lit_eve; print(*sorted({'torch', 'transformers', 'lightning', 'numpy', 'PIL'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_lazy_names_exist():
    import lit_eve

    for name in lit_eve.__all__:
        assert getattr(lit_eve, name) is not None


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE or path.stem in ORDER], ids=name_of)
def test_import_order(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in ORDER, f"{own} has no place in ORDER"
    for module, line in imports(path):
        if module.startswith("lit_eve."):
            other = module.split(".")[1]
            if other in ORDER:  # else it is a name of lit_eve itself, such as __version__
                assert ORDER.index(other) <= ORDER.index(own), f"{name_of(path)}:{line}: {own} must not import {other}"
        if own in NO_LIGHTNING:
            assert module.split(".")[0] not in ("lightning", "pytorch_lightning"), f"{name_of(path)}:{line}: imports Lightning"


def test_dependencies_are_declared_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    normal = lambda name: re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")  # noqa: E731
    declared = {normal(name) for name in project["dependencies"]}
    pinned = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")}
    imported = {module.split(".")[0] for path in MODULES for module, _ in imports(path)}
    third_party = imported - set(sys.stdlib_module_names) - {"lit_eve"}
    distributions = {"PIL": "pillow", "yaml": "pyyaml"}
    extras = project["optional-dependencies"]
    guarded = {normal(name) for extra in extras.keys() - {"dev"} for name in extras[extra]}  # used where they are found
    missing = {distributions.get(name, name).replace("_", "-") for name in third_party} - declared - guarded
    assert missing == set(), "imported, but not in pyproject.toml"
    assert declared | {normal(name) for name in extras["dev"]} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_conda_environment_has_the_pinned_torch():
    pinned = re.search(r"^torch==([\d.]+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    conda = re.search(r"pytorch-gpu=([\d.]+)", (ROOT / "environment.yml").read_text())[1]
    assert f"{pinned}.".startswith(f"{conda}.")


# ---- documents


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_part_of_the_site():
    index = (ROOT / "docs/index.md").read_text()
    listed = {line for block in re.findall(r"```\{toctree\}\n(.*?)```", index, flags=re.DOTALL) for line in block.split()}
    pages = [page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")]
    own = {str(page) for page in pages if page.parts[0] not in ("index", "_build", "notebooks")}
    assert own <= listed, "not in a toctree of docs/index.md"


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda page: page.stem)
def test_the_reference_has_every_public_name(page):
    text = page.read_text()
    (module,) = re.findall(r"^# `([\w.]+)`$", text, flags=re.MULTILINE)
    package = import_module(module)
    for name in getattr(package, "__all__", ()):
        value = getattr(package, name)
        documented = isinstance(value, (type, FunctionType)) and value.__doc__ and f"automodule:: {module}\n" in text
        assert documented or f"py:data:: {name}\n" in text or f"`{name}" in text, name


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_resolve(path):
    for link in links(path):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name_of(path)}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(path)}: {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_named_paths_exist(path):
    named = re.findall(
        r"(?<![\w/.-])((?:lit_eve|experiments|docs|tests|\.ci|\.github)/[\w./-]*\w)(?![\w./-]*\*)", path.read_text()
    )
    absent = [name for name in named if not (ROOT / name).exists() and not (ROOT / name.removesuffix("/")).exists()]
    assert absent == [], name_of(path)


def test_annotated_tree():
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(lit_eve/\n.*?)```", text, flags=re.DOTALL)[1]
    parents: list[str] = []
    listed = set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name.rstrip("/")]
        listed.add("/".join(parents))
        assert (ROOT / "/".join(parents)).exists(), line
        assert (ROOT / "/".join(parents)).is_dir() == name.endswith("/"), line
    folders = {f"lit_eve/{path.name}" for path in PACKAGE.iterdir() if list(path.glob("*.py"))}
    assert folders <= listed, "folders of the package that the README's tree leaves out"


def test_order_is_documented():
    rows = re.findall(r"^\| `([\w.]+)/?` \|", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)
    assert [row.removesuffix(".py") for row in rows] == ORDER


# ---- make


def make_targets() -> list[str]:
    return re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()


def test_make_help_names_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"make ([a-z-]+) ", shown) == make_targets()
    assert subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout == shown


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / ".ci/run"], ids=name_of)
def test_make_targets_in_use_exist(path):
    used = re.findall(r"(?:`|^|&& |\s{4})make ([a-z][a-z-]*)", path.read_text(), flags=re.MULTILINE)
    assert set(used) <= set(make_targets())


def test_old_python_is_refused_in_words(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    run = subprocess.run(
        ["make", "test", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0 and "needs Python 3.11 or newer" in run.stderr
    assert not (tmp_path / "venv").exists()


# ---- nothing of one machine

PRIVATE = re.compile(
    r"(?<![\w.])/(?:work|root|home|Users|mnt|opt|scratch|data[0-9]?)/\w"  # absolute paths
    r"|file:///|--(?:extra-)?index-url|PIP_(?:EXTRA_)?INDEX"  # registries
    r"|(?<!==)\b(?:10(?:\.\d{1,3}){3}|(?:192\.168|172\.16)(?:\.\d{1,3}){2})\b"  # hosts
)


def test_nothing_is_tracked_that_git_shall_ignore():
    """Such as a link ``.venv``: a checkout would put it in the place of the environment that is there."""
    listing = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    assert done.stdout.split("\n") == [""]


def test_no_paths_or_hosts_of_a_machine():
    found = []
    for path in tracked_files():
        if path == Path(__file__) or path.suffix in (".safetensors", ".png", ".jpg", ".model"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := PRIVATE.search(line):
                found.append(f"{name_of(path)}:{number}: {match[0]}")
    assert found == []
