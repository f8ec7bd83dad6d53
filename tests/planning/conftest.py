"""The micro world of the training tests."""

from tests.training.conftest import world  # noqa: F401
