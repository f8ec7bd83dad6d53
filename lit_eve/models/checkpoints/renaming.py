"""Weights as they lie in files, under the names and in the shapes that transformers has in memory.

Of some families the two differ: experts lie one by one and are held as one tensor (mixtral, qwen3_moe), or a module was renamed
(gpt_neox). transformers says in tables of its own what becomes of what; here they are applied to one tensor after the other.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from lit_eve.errors import CheckpointError


def as_in_memory(
    model: PreTrainedModel, names: Iterable[str], read: Callable[[str], Tensor], source: str
) -> Iterator[tuple[str, Tensor]]:
    """Read the weights of a folder under the names that they have in ``model``.

    Args:
        model: what the folder holds; on the meta device.
        names: of all tensors in the folder.
        read: gives the tensor of a name. Called when its turn comes; what is made of several tensors holds these at a time.
        source: the folder, for error messages.

    Yields:
        Name and tensor. What the family says is not needed is left out; a name that the model does not have stays as it is.

    Raises:
        CheckpointError: a tensor cannot be made of those that are there.
    """
    expected = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    made_of: dict[str, WeightConverter] = {}
    single: dict[str, str] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        if target not in expected and name in expected:
            target, pattern = name, None
        if pattern is None:
            single[target] = name
            continue
        converter = made_of.setdefault(target, copy.deepcopy(converter_of[pattern]))
        converter.add_tensor(target, name, pattern, partial(read, name))
    superfluous = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]
    for target, name in single.items():
        if target in expected or not any(re.search(pattern, target) for pattern in superfluous):
            yield target, read(name)
    for target, converter in made_of.items():
        try:
            made = converter.convert(target, model=model, config=model.config)
        except Exception as error:  # of shapes and counts that do not fit each other: torch says so in many ways
            raise CheckpointError(f"{source}: {target} cannot be made of the tensors that are there: {error}") from error
        for name, value in made.items():
            yield name, value[0] if isinstance(value, list) else value
