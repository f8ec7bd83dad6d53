"""Ablations: arms x seeds of a recipe, as processes that survive any interruption, and what can be said of their results."""
