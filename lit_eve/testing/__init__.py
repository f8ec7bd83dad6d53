"""Contracts as functions, for tests of your own: what a part, and what a whole model made of parts, must do."""

from lit_eve.testing.patch_embeddings import check_patch_embedding
from lit_eve.testing.variant import check_variant

__all__ = ["check_patch_embedding", "check_variant"]
