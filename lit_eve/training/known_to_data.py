"""What a datamodule asks a LitEve for (``EveDataModule.attach``); it is there before weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_eve.data.features import TeacherFeatures
    from lit_eve.processing import EveProcessor, ImageGeometry, TeacherGrid
    from lit_eve.training.blueprint import Blueprint


class KnownToData:
    """A module with a blueprint of its model, which says what batches must hold."""

    blueprint: Blueprint

    @property
    def processor(self) -> EveProcessor:
        """Tokenizer, templates and image geometry of the model; there before its weights are loaded."""
        return self.blueprint.processor

    @property
    def geometry(self) -> ImageGeometry:
        """Image sizes of the model."""
        return self.blueprint.config.image_geometry

    @property
    def teacher_grid(self) -> TeacherGrid | None:
        """The patches of the teacher, whose pixels batches must hold; None without a teacher."""
        return self.blueprint.teacher_grid

    @property
    def teacher_features(self) -> TeacherFeatures | None:
        """The features that batches must hold instead, and the shards do; None without."""
        return self.blueprint.needed_features

    @property
    def longest_sample(self) -> int | None:
        """How many tokens the decoder was made for; None if its config does not say."""
        from lit_eve.models.decoders import longest_sample

        return longest_sample(self.blueprint.config.text_config)

    @property
    def reads_longer_samples(self) -> bool:
        """Whether the decoder can read on behind that."""
        from lit_eve.models.decoders import reads_longer_samples

        return reads_longer_samples(self.blueprint.config.text_config)
