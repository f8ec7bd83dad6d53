"""Variants by name: what a YAML calls ``{name: eve_v1, width: 1024}`` becomes an object.

A variant registers itself where it is defined; nothing is imported because a config file names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from lit_eve.errors import ConfigError
from lit_eve.imports import how_to_import, module_of

T = TypeVar("T")


class Registry(Generic[T]):
    """Named variants of one kind.

    Args:
        kind: what the variants are, in words ("patch embedding"); used in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._variants: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Class or function decorator that adds a variant under ``name``.

        Defined again in a notebook or an interactive session, where cells are run many times, a variant takes its own place.

        Raises:
            ConfigError: there is another variant of that name.
        """

        def add(variant: Callable[..., T]) -> Callable[..., T]:
            known = self._variants.get(name, variant)
            if known is not variant and not _is_defined_again(known, variant):
                raise ConfigError(f"{self.kind} {name!r} is registered already")
            self._variants[name] = variant
            return variant

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._variants

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._variants))

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._variants:
            raise ConfigError(
                f"unknown {self.kind} {name!r}; known: {', '.join(self)}; one of your own is known once its module is imported "
                "(--import MODULE)"
            )
        return self._variants[name]

    def name_of(self, variant: Callable[..., T]) -> str:
        """The name under which a variant is registered.

        Raises:
            ConfigError: it is not.
        """
        for name, known in self._variants.items():
            if known is variant:
                return name
        raise ConfigError(f"{variant.__name__} is no registered {self.kind}; known: {', '.join(self)}")

    def module_of(self, name: str) -> str | None:
        """The module outside lit_eve that brings a variant; None for a variant of lit_eve."""
        return module_of(self[name])

    def require(self, name: str, module: str | None) -> None:
        """Raise ConfigError if there is no variant ``name`` although a saved model says that ``module`` brings it."""
        if module is not None and name not in self._variants:
            raise ConfigError(f"this model needs the {self.kind} {name!r} from `{module}`: {how_to_import(module)}")

    def check(self, spec: Mapping[str, Any], context: tuple[str, ...] = (), beside: tuple[str, ...] = ()) -> None:
        """Raise ConfigError unless ``spec`` names a variant and all its arguments exist (and the required ones are given).

        Args:
            spec: ``{"name": ..., **arguments}``.
            context: names of the arguments that ``build`` will add by itself.
            beside: keys that may stand in ``spec`` and are no arguments.
        """
        if not isinstance(spec, Mapping) or "name" not in spec:
            raise ConfigError(f"the {self.kind} needs a 'name'; known: {', '.join(self)}")
        parameters = inspect.signature(self[spec["name"]]).parameters
        allowed = [p for p in parameters if p not in context]
        for key in spec:
            if key not in ("name", *allowed, *beside):
                known = ", ".join([*allowed, *beside]) or "none"
                raise ConfigError(f"{self.kind} {spec['name']!r} has no argument {key!r}; it takes: {known}")
        for key in allowed:
            if parameters[key].default is inspect.Parameter.empty and key not in spec:
                raise ConfigError(f"{self.kind} {spec['name']!r} needs the argument {key!r}")

    def asks_for(self, name: str, *arguments: str) -> bool:
        """Whether the constructor of a variant has one of these arguments."""
        return not inspect.signature(self[name]).parameters.keys().isdisjoint(arguments)

    def build(self, spec: Mapping[str, Any], **context: Any) -> T:
        """Make the variant that ``spec`` names; ``context`` holds what the caller knows and a YAML does not.

        Context that a variant does not ask for is dropped, so that variants declare only what they use.
        """
        self.check(spec, tuple(context))
        variant = self[spec["name"]]
        wanted = inspect.signature(variant).parameters
        arguments = {key: value for key, value in spec.items() if key != "name"}
        return variant(**{key: value for key, value in context.items() if key in wanted}, **arguments)


def _is_defined_again(old: Any, new: Any) -> bool:
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__
