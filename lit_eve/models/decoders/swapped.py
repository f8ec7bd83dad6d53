"""Modules of a language model that get another forward in place: their class is exchanged, their weights keep their names."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Swapped:
    """Mixed in front of a module's class by :func:`swap`; copies and pickles make that class again."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _remake, (Swapped._parents(type(self)), self.__dict__)

    @staticmethod
    def _parents(kind: type) -> tuple[type, type, bool]:
        return next(base.__dict__["parents"] for base in kind.__mro__ if "parents" in base.__dict__)


def swap(module: nn.Module, mixin: type[Swapped], keeps_name: bool = False) -> None:
    """Give a module the forward of ``mixin``, whose ``super()`` is the module's own class.

    Args:
        module: changed in place.
        mixin: a subclass of :class:`Swapped`.
        keeps_name: the class keeps its name, by which libraries that share models out to devices find blocks.
    """
    module.__class__ = _subclass(mixin, type(module), keeps_name)


@cache
def _subclass(mixin: type, kind: type, keeps_name: bool) -> type:
    name = kind.__name__ if keeps_name else f"{mixin.__name__}{kind.__name__}"
    return type(name, (mixin, kind), {"parents": (mixin, kind, keeps_name), "__module__": __name__})


def _remake(parents: tuple[type, type, bool], state: dict[str, Any]) -> nn.Module:
    kind = _subclass(*parents)
    module = kind.__new__(kind)
    module.__dict__.update(state)
    return module
