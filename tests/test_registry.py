"""Variants by name: one name is one variant, except for a cell that is run again."""

from __future__ import annotations

import pytest

from lit_eve.errors import ConfigError
from lit_eve.registry import Registry


def variant(module: str, name: str = "Mine") -> type:
    return type(name, (), {"__module__": module, "__qualname__": name})


def test_a_name_is_taken_once():
    registry: Registry[object] = Registry("thing")
    first = registry.register("mine")(variant("my_module"))
    assert registry.register("mine")(first) is first
    for other in (variant("my_module"), variant("another_module"), variant("__main__")):
        with pytest.raises(ConfigError, match="thing 'mine' is registered already"):
            registry.register("mine")(other)
    assert registry["mine"] is first


def test_a_cell_that_is_run_again_brings_its_variant_up_to_date():
    registry: Registry[object] = Registry("thing")
    registry.register("mine")(variant("__main__"))
    again = registry.register("mine")(variant("__main__"))
    assert registry["mine"] is again
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("mine")(variant("__main__", "Other"))
