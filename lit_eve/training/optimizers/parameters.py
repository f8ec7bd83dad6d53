"""What an optimizer has to know about each parameter that trains, and the groups that torch's optimizers are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, eq=False)
class Trained:
    """A parameter that trains.

    Args:
        name: its name in the model; optimizer states are saved under it.
        parameter: itself, perhaps sharded.
        lr: peak learning rate.
        label: what its learning rate is logged as.
        decays: whether weight decay is for it: for matrices, not for vectors (norms, biases, learned tokens) and embeddings.
        is_matrix: whether it is the weight of a linear layer inside the model: two-dimensional, and neither an embedding nor a
            head. Heads read one row per word, embeddings are one row per word.
    """

    name: str
    parameter: nn.Parameter
    lr: float
    label: str
    decays: bool
    is_matrix: bool


def trained_parameters(
    model: nn.Module, rates: Mapping[str, float | None], labels: Mapping[str, str] | None = None
) -> list[Trained]:
    """The parameters of a model that train, in the model's order.

    Args:
        model: its parameters are named as in ``rates``.
        rates: peak learning rate per name; None or missing for a frozen parameter.
        labels: what the rate of a parameter is logged as; None: all as "stage".
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = _linear_weights(model) - embeddings - _heads(model)
    return [
        Trained(
            name=name,
            parameter=parameter,
            lr=lr,
            label="stage" if labels is None else labels[name],
            decays=parameter.ndim >= 2 and 1 not in parameter.shape[:-1] and id(parameter) not in embeddings,
            is_matrix=parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) in matrices,
        )
        for name, parameter in model.named_parameters()
        if (lr := rates.get(name)) is not None
    ]


def _linear_weights(model: nn.Module) -> set[int]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | Conv1D)}


def _heads(model: nn.Module) -> set[int]:
    """Weights from hidden states to words, as transformers' models name them."""
    heads = (module.get_output_embeddings() for module in model.modules() if hasattr(module, "get_output_embeddings"))
    return {id(head.weight) for head in heads if head is not None}


def parameter_groups(trained: Iterable[Trained], weight_decay: float = 0.0, **settings: Any) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: one per label and learning rate, split where weight decay is for some of them only.

    Args:
        trained: the parameters.
        weight_decay: the decay of those that decay.
        settings: more entries of every group.

    Returns:
        Dicts with ``params`` (pairs of name and parameter, so that states are saved with names), ``lr``, ``weight_decay``,
        ``label`` and the settings.
    """
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for one in trained:
        decay = weight_decay if one.decays else 0.0
        empty = {"params": [], "lr": one.lr, "weight_decay": decay, "label": one.label, **settings}
        groups.setdefault((one.label, one.lr, decay), empty)["params"].append((one.name, one.parameter))
    return list(groups.values())
