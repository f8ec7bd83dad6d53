"""What is said about the data before it is read: samples that do not fit, another template, batches that come out odd."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_eve.data.lengths import SampleTable
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor
from lit_eve.processing.templates import Plain


def check_lengths(
    split: str, table: SampleTable, max_tokens: int, longest_sample: int | None, reads_longer_samples: bool
) -> None:
    """Warn of samples that are cut, and of those that are longer than what the decoder was made for.

    Args:
        split: train, validation or test.
        table: its samples.
        max_tokens: where samples are cut.
        longest_sample: how many tokens the decoder was made for; None: any number.
        reads_longer_samples: whether it can read on behind that.

    Raises:
        ConfigError: samples are longer than that, and the decoder cannot read on.
    """
    if cut := int((table.length > max_tokens).sum()):
        rank_zero_warn(
            f"data.{split}: {cut} of {len(table)} samples are longer than data.max_tokens = {max_tokens} and are cut (the "
            f"longest has {table.length.max()})"
        )
    if longest_sample is None or max_tokens <= longest_sample:
        return
    lengths = table.length.clip(max=max_tokens)
    if not (longer := int((lengths > longest_sample).sum())):
        return
    message = (
        f"data.{split}: {longer} of {len(table)} samples have more tokens (up to {lengths.max()}) than the {longest_sample} "
        f"that the decoder was made for (max_position_embeddings, and what its RoPE says); data.max_tokens = {longest_sample} "
        "cuts them"
    )
    if not reads_longer_samples:
        raise ConfigError(message)
    rank_zero_warn(message)


def check_template(processor: EveProcessor, template: str | dict[str, Any] | None) -> None:
    """Warn of dialogues that are trained in another template than the one in which the model will be asked."""
    trained, asked = (processor.template_of(one) for one in (template, None))
    if trained is not asked and not isinstance(trained, Plain):
        rank_zero_warn(
            f"data.template = {template!r} is trained, but chat, evaluations and benchmarks ask the model as its own "
            f"template says, {processor.template!r} (model.template)"
        )


def accumulation(global_batch: int, rows: int, trainer: Trainer) -> int:
    """How many micro-batches of ``rows`` rows per device make a global batch.

    Raises:
        ConfigError: the rows cannot be shared out evenly, or the trainer was told another number.
    """
    at_a_time = rows * trainer.world_size  # on all devices
    accumulate, rest = divmod(global_batch, at_a_time)
    if rest:
        nearest = " or ".join(str(n * at_a_time) for n in (accumulate, accumulate + 1) if n)
        raise ConfigError(
            f"data.global_batch = {global_batch} rows cannot be shared out to {trainer.world_size} devices x data.rows = "
            f"{rows}; {nearest} can"
        )
    if trainer.accumulate_grad_batches not in (1, accumulate):
        raise ConfigError(
            f"trainer.accumulate_grad_batches = {trainer.accumulate_grad_batches} contradicts data.global_batch = "
            f"{global_batch}, which needs {accumulate}; leave it out"
        )
    return accumulate
