"""How much memory a training step takes on each GPU, from the model itself: no formula of a layer is written down here.

What a GPU keeps (weights, gradients, optimizer) follows from the parameters and from how they are shared out. What a step adds
is measured: forward and backward pass run on the meta device, where tensors have sizes but no contents, and the bytes of all
tensors that are alive at a time are counted. For a model of 7B this takes seconds and no memory.

Notation: B rows, T tokens of a row, N images, P patches, M supervised tokens, C teacher image size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_eve.errors import ConfigError
from lit_eve.losses import AbsentTeacher
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.decoders import blocks_of
from lit_eve.planning.gpus import GIB
from lit_eve.planning.meta import fused_attention, packing_from_shapes, shapes_alone
from lit_eve.training.optimizers import build_optimizer, trained_parameters

if TYPE_CHECKING:
    from jsonargparse import Namespace

RESERVED = 2 * GIB
"""CUDA's context, buffers of NCCL and cuBLAS, and what the allocator loses between blocks: assumed, not measured."""

_PRECISIONS = {  # (what the optimizer sees, what the model computes with)
    **dict.fromkeys((None, "32-true", "32", 32), (torch.float32, torch.float32)),
    **dict.fromkeys(("bf16-mixed", "bf16"), (torch.float32, torch.bfloat16)),
    "bf16-true": (torch.bfloat16, torch.bfloat16),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU that needs most, at the moment of a step that needs most."""

    weights: int  # of the student, this GPU's part, and its buffers
    gradients: int
    optimizer: int  # its states: two moments of AdamW, one momentum of Muon
    teacher: int  # whole, on every GPU, with its buffers
    copies: int  # weights gathered or cast for computing, and gradients on their way to be reduced
    activations: int  # what the forward pass leaves for the backward pass, and the batch
    temporary: int  # what lives for a moment on top: logits, a block that is computed again, the teacher's forward pass
    reserved: int = RESERVED

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Layout:
    """How a model is shared out to GPUs.

    Args:
        shards: GPUs that share one copy; 1 without FSDP2.
        gathers: whether weights are gathered for computing (FSDP2).
        replicas: copies of the model.
        stored: dtype of weights, gradients and optimizer.
        computed: dtype of the arithmetic.
    """

    shards: int
    gathers: bool
    replicas: int
    stored: torch.dtype
    computed: torch.dtype

    @property
    def teacher(self) -> torch.dtype:
        """Dtype of the teacher; under autocast it is stored as the rest."""
        return self.computed if self.gathers else self.stored

    @classmethod
    def of(cls, trainer: Namespace, gpus: int) -> Layout:
        """The layout that a recipe's trainer settings make of ``gpus`` GPUs.

        Raises:
            ConfigError: a strategy or precision whose memory is not known.
        """
        if trainer.precision not in _PRECISIONS:
            known = ", ".join(key for key in _PRECISIONS if isinstance(key, str))
            raise ConfigError(f"trainer.precision: no plan can be made for {trainer.precision!r}, only for {known}")
        dtypes = _PRECISIONS[trainer.precision]
        strategy = trainer.strategy
        name = strategy if isinstance(strategy, str) else strategy["class_path"].rpartition(".")[2]
        if name in ("fsdp2", "FSDP2Strategy"):
            replicas = 1 if isinstance(strategy, str) else strategy["init_args"].get("replicas", 1)
            if replicas < 1 or gpus % replicas:
                raise ConfigError(f"trainer.strategy: {gpus} GPUs cannot be shared out to replicas = {replicas}")
            return cls(gpus // replicas, True, replicas, *dtypes)
        if name == "auto" or name.startswith("ddp") or name in ("DDPStrategy", "SingleDeviceStrategy"):
            return cls(1, False, gpus, *dtypes)
        raise ConfigError(f"trainer.strategy: no plan can be made for {name!r}, only for fsdp2, ddp and auto")


@dataclass(frozen=True)
class Measured:
    """Bytes of a forward and backward pass, without weights and their gradients."""

    activations: int  # alive between the two passes
    peak: int  # the most that was alive


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and are still alive; on any device.

    Args:
        existing: tensors that are there already and are not counted (views of them neither).
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._existing = [tensor.untyped_storage() for tensor in existing]  # alive, so that no other gets their id
        self._known: dict[int, Any] = {id(storage): None for storage in self._existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def meta_batch(model: EveForConditionalGeneration, rows: int, max_tokens: int, row: Mapping[str, int]) -> dict[str, Any]:
    """A packed batch without contents (docs/data_format.md): ``rows`` rows that each hold ``row``.

    Args:
        row: numbers of ``images``, their ``slots`` and ``patches``, ``targets``, and ``samples`` (padding is cut into such
            too), and the tokens of the ``longest`` sample.
    """
    keys = ("images", "slots", "patches", "targets", "samples")
    images, slots, patches, targets, samples = (rows * row[key] for key in keys)

    def tensor(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    batch = {
        **{key: tensor(rows, max_tokens) for key in ("input_ids", "labels", "position_ids")},
        "cu_seqlens": tensor(samples + 1, dtype=torch.int32),
        "max_seqlen": row["longest"],
        "target_positions": tensor(targets),
        "image_positions": tensor(slots),
        "pixel_values": tensor(patches, model.geometry.patch_dim, dtype=torch.uint8),
        "image_grid_hw": tensor(images, 2),
        "image_seeds": tensor(images),
    }
    if isinstance(teacher := model.teacher, AbsentTeacher):
        states = {state for one in model.supervisions.values() for state in one.teacher_states}
        batch["teacher_features"] = tensor(images, len(states), teacher.grid.side**2, teacher.width, dtype=torch.float32)
    elif teacher is not None:
        side = model.teacher.grid.image_size
        batch["teacher_pixel_values"] = tensor(images, 3, side, side, dtype=torch.uint8)
    return batch


def measure(
    model: EveForConditionalGeneration,
    batch: Mapping[str, Any],
    checkpointing: bool,
    arguments: Mapping[str, Any] | None = None,
) -> Measured:
    """Run forward and backward pass, and count: all supervisions, also where a schedule leaves one out for a part of the run.

    Args:
        model: on the meta device or a real one, in the dtype of the arithmetic; what trains requires gradients. Gradients of
            weights are dropped as soon as they are complete, as where they are reduced at once.
        batch: what the model takes, on the same device.
        checkpointing: whether the decoder's blocks are computed again in the backward pass.
        arguments: more of the model's forward (``LitEve.forward_arguments``).

    Raises:
        ConfigError: on the meta device, the model asks what is in a tensor; or the decoder has DoRA.
    """
    if (model.config.lora or {}).get("use_dora"):
        raise ConfigError(
            "lora.use_dora: what DoRA keeps for the backward pass is not counted right; plan with use_dora: false"
        )
    model.train()
    model.recompute_blocks(checkpointing)
    drops = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in model.parameters() if p.requires_grad]
    given = [value for value in batch.values() if isinstance(value, Tensor)]
    inputs = sum(value.nbytes for value in given)
    with (
        shapes_alone(f"the memory of {type(model.get_decoder()).__name__} and the parts around it"),
        fused_attention(),
        packing_from_shapes(model.get_decoder()),
        model.supervised_by(*model.supervisions),
        LiveBytes([*model.parameters(), *model.buffers(), *given]) as live,
    ):
        loss = model(**batch, **(arguments or {})).loss
        activations = live.now
        loss.backward()
    for drop in drops:
        drop.remove()
    return Measured(activations + inputs, live.peak + inputs)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class Holdings:
    """What a model, its auxiliary modules and the optimizer keep, however they are shared out; the optimizer steps once for it.

    Args:
        model: on the meta device; what trains requires gradients.
        optimizer: by name, with its arguments.
        auxiliaries: modules of a subclass of LitEve, on the meta device; what trains requires gradients.
    """

    def __init__(
        self,
        model: EveForConditionalGeneration,
        optimizer: Mapping[str, Any],
        auxiliaries: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.model = model
        self.auxiliaries = nn.ModuleDict(auxiliaries)
        self._states = optimizer_states([model, self.auxiliaries], optimizer)

    def memory(self, layout: Layout, step: Measured) -> Memory:
        """Everything that a GPU holds at the peak of a step, once the optimizer has made its first.

        Args:
            layout: how the model is shared out.
            step: what was measured with it.
        """
        model, own = self.model, self.auxiliaries
        student = [parameter for name, parameter in model.named_parameters() if not name.startswith("teacher.")]
        student += own.parameters()
        buffers = [buffer for name, buffer in model.named_buffers() if not name.startswith("teacher.")]
        buffers += own.buffers()
        trained = _size(student, trained=True)
        return Memory(
            weights=-(-stored_bytes(student, layout) // layout.shards) + _buffer_bytes(buffers, layout.stored),
            gradients=-(-trained * layout.stored.itemsize // layout.shards),
            optimizer=sum(state.bytes(layout) for state in self._states),
            teacher=0 if model.teacher is None else _teacher_bytes(model.teacher, layout.teacher),
            copies=_gathered(model, own, layout) if layout.gathers else _replicated(student, layout),
            activations=step.activations,
            temporary=step.peak - step.activations,
        )


@dataclass(frozen=True)
class State:
    """One tensor that an optimizer keeps for a parameter."""

    count: int  # of numbers
    dtype: torch.dtype | None  # None: as the parameter
    shared_out: bool  # as the parameter is; a counter is not

    def bytes(self, layout: Layout) -> int:
        """On one GPU."""
        size = self.count * (self.dtype or layout.stored).itemsize
        return -(-size // layout.shards) if self.shared_out else size


def optimizer_states(modules: Iterable[nn.Module], optimizer: Mapping[str, Any]) -> list[State]:
    """What an optimizer keeps from step to step: it makes a step on the meta device.

    What it needs for a moment is left out: at that time the activations are gone.
    """
    trained = []
    for module in modules:
        names = [name for name, p in module.named_parameters() if p.requires_grad and not name.startswith("teacher.")]
        trained += trained_parameters(module, dict.fromkeys(names, 1.0))
    made = build_optimizer(optimizer, trained, fused=False)  # kernels for whole groups are not there on the meta device
    for one in trained:
        one.parameter.grad = torch.empty_like(one.parameter)
    made.step()
    states = []
    for one in trained:
        one.parameter.grad = None
        for state in made.state[one.parameter].values():
            like = state.shape == one.parameter.shape
            same = like and state.dtype == one.parameter.dtype
            states.append(State(state.numel(), None if same else state.dtype, like))
    return states


def stored_bytes(parameters: Iterable[Tensor], layout: Layout) -> int:
    """What parameters take where they are kept whole: packed ones (uint8) stay packed; their scales are buffers."""
    packed = sum(parameter.numel() for parameter in parameters if parameter.dtype == torch.uint8)
    return _size(parameters) * layout.stored.itemsize + packed


def _teacher_bytes(teacher: nn.Module, dtype: torch.dtype) -> int:
    return _size(teacher.parameters()) * dtype.itemsize + _buffer_bytes(teacher.buffers(), dtype)


def _buffer_bytes(buffers: Iterable[Tensor], dtype: torch.dtype) -> int:
    """Whole on every GPU; numbers in the dtype of the weights, unless they are kept in a larger one."""
    sizes = ((x.numel(), max(x.itemsize, dtype.itemsize) if x.is_floating_point() else x.itemsize) for x in buffers)
    return sum(count * size for count, size in sizes)


def _size(parameters: Iterable[Tensor], trained: bool = False) -> int:
    parameters = [parameter for parameter in parameters if parameter.dtype != torch.uint8]
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trained)


def _gathered(model: EveForConditionalGeneration, auxiliaries: nn.Module, layout: Layout) -> int:
    """Under FSDP2, in the backward pass: each decoder block is a group, everything else but the teacher is the root group.

    Gathered are the root, which stays so between the passes, the block at work and the buffer of the next one. Gradients of the
    root wait until the end; those of the block at work are being made while those of the block before are reduced, from a copy
    in float32. Auxiliary modules, groups of their own, are gathered from forward to backward pass as the root is.
    """
    blocks = list(blocks_of(model.get_decoder()))
    of_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}
    root = [p for name, p in model.named_parameters() if id(p) not in of_blocks and not name.startswith("teacher.")]
    root += auxiliaries.parameters()
    block = max(_size(block.parameters()) for block in blocks)
    trained = max(_size(block.parameters(), trained=True) for block in blocks)
    size = layout.computed.itemsize
    return (_size(root) + 2 * block) * size + (_size(root, trained=True) + trained) * size + trained * 4


def _replicated(student: list[Tensor], layout: Layout) -> int:
    """Copies that autocast makes of the weights, and DDP's buckets of gradients."""
    cast = _size(student) * layout.computed.itemsize if layout.computed != layout.stored else 0
    return cast + (_size(student, trained=True) * layout.stored.itemsize if layout.replicas > 1 else 0)
