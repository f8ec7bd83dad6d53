"""What is made of a causal language model of transformers before EVE reads with it: kinds of decoders, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.registry import Registry


class Merge(NamedTuple):
    """How one weight of a dense decoder is made."""

    sources: tuple[str, ...]  # names of the weights that it is made of
    compute: Callable[..., Tensor]  # of these, in this order


class DecoderKind:
    """One kind of decoder; registered in :data:`DECODER_KINDS`. This one changes nothing.

    The arguments of its constructor are keys of the YAML and of ``config.json``.
    """

    needs_image_slots: ClassVar[bool] = False
    """Whether its blocks take the keyword ``image_slots`` (:class:`~lit_eve.models.decoders.routing.ImageSlots`, or None).
    The decoder hands it on to them, as all that it does not know."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None

    def config_of(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The config of the decoder that is made of a language model of this config; in a model, ``text_config`` is that one.

        Raises:
            ConfigError: this cannot be right for the language model's family.
        """
        return config

    def name_of(self, name: str) -> str:
        """How a weight of the language model is called in the extended one."""
        return name

    def extend(self, language_model: PreTrainedModel) -> None:
        """Change a language model in place.

        Called once, before any weight is loaded, often on the meta device: it must not read values. Weights that the
        language model has by itself are called as :meth:`name_of` says.

        Raises:
            ConfigError: this cannot be right for the language model's family.
        """

    def copies(self, language_model: PreTrainedModel) -> dict[str, str]:
        """The weights that begin as a copy of another: their names in the extended language model, and those of the other."""
        return {}

    def drawn(self, language_model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
        """All other new weights, drawn at random: their names in the extended language model, and full tensors on the CPU.

        Iterated under a seed that all processes share. Tensors come one by one: they need not fit into memory together.
        """
        return ()

    def merges(self, names: Iterable[str]) -> dict[str, Merge]:
        """How a dense decoder is made that computes the same: its weights by name; those that are not here stay as they are.

        Args:
            names: of all weights of the extended language model.

        Raises:
            ConfigError: there is no such decoder.
        """
        raise ConfigError("only a dense decoder can become one of another kind")


DECODER_KINDS: Registry[DecoderKind] = Registry("kind of decoder")


@DECODER_KINDS.register("dense")
class Dense(DecoderKind):
    """The language model as it is: all tokens are computed by the same weights."""

    def merges(self, names: Iterable[str]) -> dict[str, Merge]:
        """There is nothing to do."""
        return {}
