"""A model on the meta device gets its weights, one tensor at a time; sharded parameters keep their own part of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.skeletons import restore_buffers, unsaved_buffers

_SHOWN = 5


@torch.no_grad()
def fill(
    model: PreTrainedModel,
    stored: Iterable[tuple[str, Tensor]],
    parts: Mapping[str, nn.Module],
    may_be_new: Collection[str],
    device: torch.device | str,
    source: str,
    copies: Mapping[str, str] = MappingProxyType({}),
    drawn: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Materialise ``model`` on ``device`` and copy every weight into its place, in the dtype that the place has.

    Args:
        model: on the meta device; its parameters may be sharded (DTensor). No process ever holds more than its own part and
            the tensor that is being read.
        stored: names and full tensors, in any order.
        parts: the small parts around the language model, on the CPU with new weights, the same in every process.
        may_be_new: names of the parts whose weights are taken from here too, where ``stored`` has none of them.
        device: where the weights go.
        source: where the stored weights come from, for error messages.
        copies: names of weights that are the same as another one, whose name follows, where ``stored`` does not have them.
        drawn: names and full tensors of weights that are taken from here where ``stored`` does not have them.

    Raises:
        CheckpointError: a weight that the model does not have or has in another shape, or one that is missing.
    """
    model.to_empty(device=device)
    model.tie_weights()
    restore_buffers(model)
    for name, part in parts.items():  # the aligner, which is no part of the config's model
        for key, buffer in unsaved_buffers(part).items():
            model.get_submodule(name).get_buffer(key).copy_(buffer)
    _place(model, stored, parts, may_be_new, source, copy_into, copies, drawn)


def check_weights(
    model: PreTrainedModel,
    stored: Iterable[tuple[str, Tensor]],
    may_be_new: Collection[str],
    source: str,
    copies: Mapping[str, str] = MappingProxyType({}),
    drawn: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Raise what :func:`fill` would, going by names and shapes alone; everything may be on the meta device."""
    model.tie_weights()
    _place(model, stored, dict(model.named_children()), may_be_new, source, lambda place, tensor: None, copies, drawn)


def _place(
    model: PreTrainedModel,
    stored: Iterable[tuple[str, Tensor]],
    parts: Mapping[str, nn.Module],
    may_be_new: Collection[str],
    source: str,
    copy: Callable[[Tensor, Tensor], None],
    copies: Mapping[str, str],
    drawn: Iterable[tuple[str, Tensor]],
) -> None:
    places = _places(model)
    filled: set[str] = set()
    copies_of: dict[str, list[str]] = {}
    for name, original in copies.items():
        copies_of.setdefault(original, []).append(name)
    for name, tensor in stored:
        if name not in places:
            raise CheckpointError(f"{source}: the model has no weight {name!r}")
        if tensor.shape != places[name].shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, but the model's has {tuple(places[name].shape)}"
            )
        for place in (name, *(twin for twin in copies_of.get(name, ()) if twin not in filled)):
            copy(places[place], tensor)
            filled.add(place)
    for name, tensor in drawn:
        if name not in filled:
            copy(places[name], tensor)
            filled.add(name)
    for part in may_be_new:
        if not any(name.startswith(f"{part}.") for name in filled):
            for name, tensor in parts[part].state_dict(prefix=f"{part}.").items():
                copy(places[name], tensor)
                filled.add(name)
    tied = {id(places[name]) for name in filled}
    if missing := sorted(name for name, place in places.items() if id(place) not in tied):
        more = f" and {len(missing) - _SHOWN} others" if len(missing) > _SHOWN else ""
        raise CheckpointError(f"{source}: weights are missing: {', '.join(missing[:_SHOWN])}{more}")


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is in a state dict, by name; tied weights under each of their names."""
    saved = model.state_dict().keys()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor for name, tensor in tensors if name in saved}


def copy_into(place: Tensor, tensor: Tensor) -> None:
    """Copy a full tensor into a parameter, or its own part into a sharded one; nothing is sent between processes."""
    if isinstance(place, DTensor):
        tensor = tensor.to(place.device, place.dtype)
        tensor = distribute_tensor(tensor, place.device_mesh, place.placements, src_data_rank=None)
    place.copy_(tensor)
