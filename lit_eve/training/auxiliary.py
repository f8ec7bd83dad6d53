"""Modules of a subclass of LitEve that take part in training alone: heads with losses of their own, and the like.

They are no part of the model: checkpoints hold them, FSDP shards them, stages train them under their own names, the exported
model is free of them. Like the aligner they lie beside it, for a later stage (``auxiliary.safetensors``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.losses import Term
from lit_eve.losses.terms import Count
from lit_eve.models.checkpoints.filling import copy_into
from lit_eve.models.checkpoints.folders import find_model_folder
from lit_eve.models.checkpoints.sharded import MODEL, is_sharded, iterate_sharded, read_checkpoint
from lit_eve.models.checkpoints.skeletons import parameters_on_meta, unsaved_buffers
from lit_eve.models.checkpoints.weights import is_checkpoint, read_file
from lit_eve.models.own import attention_module

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.training.module import LitEve

FILE = "auxiliary.safetensors"
_OWN = ("model", "metrics")  # of LitEve itself


def auxiliaries(module: LitEve) -> dict[str, nn.Module]:
    """All modules of a LitEve that have something to be trained or saved and are neither its model nor metrics, by name."""
    return {
        name: child
        for name, child in module.named_children()
        if name not in _OWN and not isinstance(child, Metric) and (list(child.parameters()) or child.state_dict())
    }


def make_auxiliaries(module: LitEve) -> dict[str, nn.Module]:
    """Make what ``module.auxiliary_parts()`` returns, and whatever its ``__init__`` made, a trained part of it.

    Initial weights are drawn from the beginning of the seed, so that they are the same in all processes; those of the stage
    before replace them where ``init_from`` has them.

    Raises:
        ConfigError: a name that the model or LitEve has, or a parameter that is in no module.
        CheckpointError: ``init_from`` has weights of that name and another shape.
    """
    own = _made(module)
    if own and module.blueprint.init_from is not None:
        _take(own, _stored(module.blueprint.init_from), str(module.blueprint.init_from))
    return own


def planned_auxiliaries(module: LitEve, model: EveForConditionalGeneration) -> dict[str, nn.Module]:
    """What :func:`make_auxiliaries` would make for a model on the meta device, on the meta device too.

    Nothing is read, parameters keep no memory, and the module stays as it is: without a model.

    Raises:
        ConfigError: as there, or ``auxiliary_parts`` needs what only a real model has.
    """
    twin = copy.deepcopy(module)
    twin.model = model
    try:
        with parameters_on_meta():
            return _made(twin)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(module).__name__}.auxiliary_parts cannot be planned, as it needs more of the model than its shape: {error}"
        ) from error


def auxiliary_terms(losses: Mapping[str, Term | tuple[Tensor, Count]], known: Mapping[str, Term], kind: str) -> dict[str, Term]:
    """What ``auxiliary_losses`` returned, as terms beside the ``known`` ones of the model.

    Args:
        kind: the subclass, for messages.

    Raises:
        ConfigError: one is no sum with what it is averaged over, or has a name that is taken.
    """
    terms = {}
    for name, loss in losses.items():
        term = Term(*loss) if isinstance(loss, tuple) and 2 <= len(loss) <= 3 else None
        if term is None or term.per not in ("tokens", "images") or term.total.ndim:
            raise ConfigError(f"{kind}.auxiliary_losses: {name!r} must be a sum (0-dim) and one of 'images' and 'tokens'")
        if name in (*known, "loss"):
            raise ConfigError(f"{kind}.auxiliary_losses: {name!r} is the name of a loss that is there already")
        terms[name] = term
    return terms


def _made(module: LitEve) -> dict[str, nn.Module]:
    kind = type(module).__name__
    if bare := [name for name, _ in module.named_parameters(recurse=False)]:
        raise ConfigError(f"{kind}.{bare[0]} is a parameter in no module: return a module with it from auxiliary_parts()")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        parts = module.auxiliary_parts()
    for name, part in parts.items():
        if hasattr(module, name):
            raise ConfigError(f"{kind}.auxiliary_parts: LitEve has a {name!r} of its own; choose another name")
        module.add_module(name, part)
    own = auxiliaries(module)
    if taken := sorted(own.keys() & {name for name, _ in module.model.named_children()}):
        raise ConfigError(f"{kind}.{taken[0]}: the model has a part of that name, and stages go by names; choose another")
    for part in own.values():
        part.to(device=module.model.device, dtype=module.model.dtype).train()
    return own


@torch.no_grad()
def _take(parts: Mapping[str, nn.Module], stored: Mapping[str, Tensor], source: str) -> None:
    for name, part in parts.items():
        places = part.state_dict(prefix=f"{name}.")
        found = {key: value for key, value in stored.items() if key.startswith(f"{name}.")}
        if not found:
            continue
        for key in sorted(places.keys() | found.keys()):
            shapes = [tuple(tensors[key].shape) if key in tensors else None for tensors in (found, places)]
            if shapes[0] != shapes[1]:
                raise CheckpointError(f"{source}: {key} has the shape {shapes[0]} there and {shapes[1]} here")
        for key, place in places.items():
            copy_into(place, found[key])


def _stored(source: str) -> dict[str, Tensor]:
    """Weights of auxiliaries in what ``init_from`` names."""
    if is_checkpoint(source):
        prefix = "model."
        if is_sharded(source):
            stored = dict(iterate_sharded(source, MODEL, skip=MODEL + prefix))
        else:
            stored = read_checkpoint(source).get("state_dict", {})
        return {name: value for name, value in stored.items() if not name.startswith(prefix)}
    file = Path(find_model_folder(source), FILE)
    return read_file(file) if file.is_file() else {}


def save_auxiliaries(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write their weights beside an exported model."""
    if weights:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / FILE)


# ---- what a subclass must not do behind the config's back


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What decides how a model answers besides its weights and its config: classes, plain settings, replaced forwards, an
    attention of one's own, buffers."""
    sums = {name: buffer.double().cpu().sum() for name, buffer in unsaved_buffers(model).items()}
    facts: dict[str, Any] = {name: f"{total:.17g} in sum" for name, total in sums.items()}
    for name, module in model.named_modules():
        facts[name] = type(module).__qualname__
        facts |= {f"{name}.{key}": "buffer" for key in module._buffers.keys() - module._non_persistent_buffers_set}
        if isinstance(module, PreTrainedModel) and attention_module(attention := module.config._attn_implementation):
            facts[f"{name}.attention"] = attention
        if isinstance(module, nn.Dropout):
            continue
        for key, value in vars(module).items():
            if key == "forward":
                facts[f"{name}.forward"] = f"replaced by {getattr(value, '__qualname__', value)}"
            elif key[0] != "_" and "dropout" not in key and key not in _FREE and isinstance(value, _PLAIN):
                facts[f"{name}.{key}"] = value
    return facts


_PLAIN = (bool, int, float, str, type(None))
_FREE = ("training", "gradient_checkpointing")


def check_as_built(module: LitEve, built: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse to train what would be saved without the changes that a subclass made to it.

    Args:
        built: the model's :func:`fingerprint` when it was built.
        known: the names of all parameters that the stage knows.

    Raises:
        ConfigError: the model was changed after it was built, or the module got parts after ``configure_model``.
    """
    kind, now = type(module).__name__, fingerprint(module.model)
    for key in sorted(built.keys() | now.keys()):
        if (before := built.get(key)) != (after := now.get(key)):
            what = f"model.{key.strip('.')}: {before} -> {after}"
            raise ConfigError(
                f"{kind} changed the model after it was built ({what}); a saved model would be loaded without that: make the "
                "change in a subclass of EveForConditionalGeneration, and name it as model_class"
            )
    names = [name.removeprefix("model.") for name, _ in module.named_parameters()]
    if new := [name for name in names if name not in known and not name.startswith("teacher.")]:
        raise ConfigError(
            f"{kind}: {new[0]} was added after configure_model, and no stage knows it: return it from auxiliary_parts()"
        )
