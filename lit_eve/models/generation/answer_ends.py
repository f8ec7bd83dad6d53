"""Where answers end: the tokens and texts that ``generate`` stops at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.utils import GENERATION_CONFIG_NAME

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.models.checkpoints.folders import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_eve.processing import EveProcessor
    from lit_eve.processing.encoder import TemplateName


def end_answers(model: PreTrainedModel, processor: EveProcessor, stored: Iterable[int | list[int] | None] = ()) -> None:
    """Let ``generate`` stop where an answer ends, whoever says so: config, tokenizer, the processor's template, or ``stored``.

    Chat models often name the end of a turn in their ``generation_config.json`` or chat template alone, while ``config.json``
    names the end of a text. The union goes into both configs of the model, and is saved with it.

    Args:
        model: its configs are changed.
        processor: of the model.
        stored: further ids, such as those of a decoder's ``generation_config.json``.
    """
    config, tokenizer = model.config, processor.tokenizer
    template = None
    with suppress(ConfigError):  # a template that this tokenizer cannot write is refused where it is used
        template = processor.answer_end().token
    configs = (config, config.text_config, model.generation_config)
    written = [getattr(one, "eos_token_id", None) for one in configs]  # a config that was not given one may lack the attribute
    named = [*written, tokenizer.eos_token_id, template, *stored]
    config.eos_token_id = model.generation_config.eos_token_id = _united(named)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = config.pad_token_id


def stored_ends(folder: Path) -> list[int]:
    """The tokens that the generation_config.json of a folder names as ends of a text; none where there is no such file.

    Raises:
        CheckpointError: it cannot be read, or names something else.
    """
    file = folder / GENERATION_CONFIG_NAME
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(id) is int for id in ids):
        raise CheckpointError(f"{file}: eos_token_id must be the id of a token or a list of them, got {ends!r}")
    return ids


class TextEnd(StoppingCriteria):
    """An answer ends with a text, wherever tokens begin and end in it.

    transformers' ``stop_strings`` does the same by tables over the vocabulary, which cannot be made for every tokenizer.

    Args:
        tokenizer: decodes.
        text: what ends an answer.
        prompt_length: tokens of the prompt, padding included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, prompt_length: int) -> None:
        self.tokenizer, self.text, self.prompt_length = tokenizer, text, prompt_length
        self.longest = len(text.encode()) + 1  # tokens that it can take, each at least a byte, and one that it begins in

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """(B, T) -> (B,) bool."""
        start = max(self.prompt_length, input_ids.shape[1] - self.longest)
        ends = [self.text in self.tokenizer.decode(row) for row in input_ids[:, start:].tolist()]
        return torch.tensor(ends, device=input_ids.device)


def stop_arguments(
    model: PreTrainedModel, processor: EveProcessor, prompt_length: int, template: TemplateName | None = None
) -> dict[str, Any]:
    """Arguments of ``generate`` that let it stop where ``template`` ends an answer.

    Args:
        prompt_length: tokens of the prompts, padding included.
        template: how the prompts were written; None: the processor's own template.
    """
    end = processor.answer_end(template)
    arguments: dict[str, Any] = {"eos_token_id": _united([model.generation_config.eos_token_id, end.token])}
    if end.text is not None:
        stop = TextEnd(processor.tokenizer, end.text, prompt_length)
        arguments["stopping_criteria"] = StoppingCriteriaList([stop])
    return arguments


def without_end(answer: str, processor: EveProcessor, template: TemplateName | None = None) -> str:
    """A decoded answer without the text that ended it, and without outer blanks."""
    end = processor.answer_end(template).text
    return (answer if end is None else answer.partition(end)[0]).strip()


def _united(named: Iterable[int | list[int] | None]) -> int | list[int] | None:
    """All ids, sorted; a single one alone, as transformers writes it."""
    ids = sorted({id for ids in named if ids is not None for id in (ids if isinstance(ids, list | tuple) else [ids])})
    return ids[0] if len(ids) == 1 else ids or None
