"""From the YAML keys of a model to the model."""

from lit_eve.training.blueprint.blueprint import PARTS, Blueprint

__all__ = ["PARTS", "Blueprint"]
