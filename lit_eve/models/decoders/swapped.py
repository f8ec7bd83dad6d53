"""Modules of a language model that get another forward in place: their class is exchanged, their weights keep their names."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Swapped:
    """Mixed in front of a module's class by :func:`swap`; copies and pickles make that class again."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _remake, (*_origin(type(self)), self.__dict__)


def swap(module: nn.Module, mixin: type[Swapped], keeps_name: bool = False) -> None:
    """Give a module the forward of ``mixin``, whose ``super()`` is the module's own class.

    Args:
        module: changed in place.
        mixin: a subclass of :class:`Swapped`.
        keeps_name: the class keeps its name, by which libraries that share models out to devices find blocks.
    """
    module.__class__ = _subclass(mixin, type(module), keeps_name)


def class_before(module: nn.Module) -> type:
    """The class that a module had before anything was mixed in front of it."""
    return _origin(type(module))[0]


@cache
def _subclass(mixin: type[Swapped], kind: type, keeps_name: bool) -> type:
    name = kind.__name__ if keeps_name else f"{mixin.__name__}{kind.__name__}"
    return type(name, (mixin, kind), {"parents": (mixin, kind, keeps_name), "__module__": mixin.__module__})


def _origin(kind: type) -> tuple[type, list[tuple[type[Swapped], bool]]]:
    """The class that a module had, and what was mixed in front of it since; FSDP2 stands in front of all that."""
    mixins = []
    while (made := next((base for base in kind.__mro__ if "parents" in base.__dict__), None)) is not None:
        mixin, kind, keeps_name = made.__dict__["parents"]
        mixins.insert(0, (mixin, keeps_name))
    return kind, mixins


def _remake(kind: type, mixins: list[tuple[type[Swapped], bool]], state: dict[str, Any]) -> nn.Module:
    for mixin, keeps_name in mixins:
        kind = _subclass(mixin, kind, keeps_name)
    module = kind.__new__(kind)
    module.__dict__.update(state)
    return module
