"""Modules of the user's own: imported when the user says so, remembered by name, never imported because a file names them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError

_asked: list[str] = []


def asked_for() -> list[str]:
    """What :func:`import_own` has imported in this process, as it was named."""
    return list(_asked)


def import_own(names: Iterable[str]) -> None:
    """Import modules from the current folder or anywhere on Python's path.

    Args:
        names: of modules ("my_variants", "my_package.heads"), or paths of Python files ("variants/fourier.py"). A file is
            imported by its own name ("fourier"), and its folder is put on the path, so that worker processes find it too.

    Raises:
        ConfigError: there is no such module or file, or another module of that name was imported before. What the module
            itself raises is not caught.
    """
    for name in names:
        if name.endswith(".py"):
            _import_file(name, Path(name).expanduser().resolve())
        else:
            _on_path(Path.cwd())
            _import(name, name)
        if name not in _asked:
            _asked.append(name)


def _import_file(name: str, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"imports: there is no file {name}")
    _on_path(path.parent)
    found = getattr(_import(path.stem, name), "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise ConfigError(f"imports: {name} has the name of another module, {found or path.stem}: rename the file")


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import(module: str, name: str) -> Any:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"imports: {name!r} is no name of a module")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):  # something that the module imports
            raise
        raise ConfigError(f"imports: there is no module {name!r}, neither in {Path.cwd()} nor on Python's path") from error


def module_of(thing: Any) -> str | None:
    """The module that brings a class or function; None for what belongs to lit_eve.

    A script that was started as such has the name under which it would be imported.
    """
    name = thing.__module__
    if name.split(".")[0] == "lit_eve":
        return None
    if name == "__main__":
        main = sys.modules["__main__"]
        if (spec := getattr(main, "__spec__", None)) is not None:
            return spec.name.removesuffix(".__main__")
        if (file := getattr(main, "__file__", None)) is not None:
            return Path(file).stem
    return name


def path_of(thing: type) -> str | None:
    """``module:Class`` of a class; None for one of lit_eve."""
    module = module_of(thing)
    return None if module is None else f"{module}:{thing.__qualname__}"


def get_class(name: str, key: str) -> type:
    """The class that a user names in full ("my_module.PixelEve"); its module is imported.

    Raises:
        ConfigError: there is no such module, or no such class in it.
    """
    module, _, kind = name.rpartition(".")
    if not module:
        raise ConfigError(f"{key}: {name!r} should be the name of a class with its module, as in my_module.{name}")
    import_own([module])
    found = getattr(sys.modules[module], kind, None)
    if not isinstance(found, type):
        raise ConfigError(f"{key}: the module {module!r} has no class {kind!r}")
    return found


def find_class(path: str) -> type | None:
    """The class that :func:`path_of` names, if its module was imported; nothing is imported here."""
    module, _, name = path.partition(":")
    for found in (sys.modules.get(module), sys.modules.get("__main__")):
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and path_of(found) == path:
            return found
    return None


def is_there(path: str) -> bool:
    """Whether :func:`find_class` would find it; of a class inside a function, whether its module was imported."""
    module, _, name = path.partition(":")
    return module in sys.modules if "<locals>" in name else find_class(path) is not None


def how_to_import(module: str) -> str:
    """What somebody should do who lacks ``module``."""
    if module == "__main__":
        return "it was defined in a notebook or an interactive session: define it again, or put it into a module"
    return f"import it, or pass --import {module} (in a YAML, imports: [{module}])"
