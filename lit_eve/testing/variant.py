"""One contract for every composition: what holds for EVE v1 must hold for each model made of other parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lit_eve.errors import LitEveError
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.testing.answering import check_answers, check_cache
from lit_eve.testing.composition import build, config_of
from lit_eve.testing.planned import check_planned
from lit_eve.testing.processes import check_processes
from lit_eve.testing.reading import (
    check_checkpointing,
    check_every_kind_of_sample,
    check_images_alone,
    check_packed,
    check_padded,
)
from lit_eve.testing.saving import check_saved
from lit_eve.testing.seeing import check_recorded
from lit_eve.training import LitEve

Check = Callable[[EveForConditionalGeneration], None]

CHECKS: tuple[Check, ...] = (
    *(check_images_alone, check_packed, check_padded, check_every_kind_of_sample),
    *(check_answers, check_cache, check_saved),
)
"""What every composition does."""
REFUSABLE: dict[str, Check] = {
    "gradient checkpointing": check_checkpointing,
    "attention maps": check_recorded,
    "plan": check_planned,
}
"""What lit_eve may refuse to do with some of them, with a sentence."""


def check_variant(
    config: EveConfig | Mapping[str, Any],
    processes: bool = False,
    training_class: type[LitEve] = LitEve,
) -> dict[str, str]:
    """Try all that a model must do, on a tiny random one that is made of a composition; in seconds, on the CPU.

    Samples in packed rows and in left-padded batches are what they are alone, also without images, with several, with some
    that touch, and with one at the end. A KV cache changes nothing, nor does gradient checkpointing, nor saving and loading.
    Recorded attention is what the composition says. ``lit-eve plan`` counts its parameters, its FLOPs (within 2 %), and the
    memory of a training step: weights, gradients and states of the optimizer to the byte, activations within 1 %.

    Args:
        config: the parts as they stand in ``config.json``: ``{"patch_embedding": {"name": ..., **arguments}, ...}``; what is
            missing is tiny and simple. Give small sizes, with which a photo has few tokens. ``text_config`` holds what the
            decoder has other than a tiny LLaMA. A teacher is a tiny random CLIP, whatever is named.
        processes: also train, on the CPU: two FSDP2 processes are as good as one, and a run that is killed and called again
            ends with the same bits. Takes some ten seconds, and forks this process.
        training_class: a subclass of LitEve, if the variant has one; its ``model_class`` is tried.

    Returns:
        What lit_eve refuses to do with the composition, with its sentence: of ``gradient checkpointing``, ``attention maps``
        and ``plan``. Empty where it does everything.

    Raises:
        AssertionError: the composition does not do one of these; the message says what differs, and by how much.
        LitEveError: lit_eve refuses the composition.
    """
    config = config_of(config)
    model = build(config, training_class.model_class or EveForConditionalGeneration)
    for check in CHECKS:
        check(model)
    refused = {}
    for name, check in REFUSABLE.items():
        try:
            check(model)
        except LitEveError as error:
            refused[name] = str(error)
    if processes:
        check_processes(config, training_class)
    return refused
