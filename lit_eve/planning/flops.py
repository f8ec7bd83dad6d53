"""How much arithmetic a training step is, by part: what a time must be compared with to say how well a GPU is used.

Counted are the floating point operations of matrix products (a multiplication and an addition are two), as the model's
mathematics needs them: nothing that is computed twice to save memory, no padding, and of attention only the pairs that see each
other (an image attention of your own is counted as if it hid nothing). Divided by time and by the peak of the device this gives
the model FLOPs utilisation (MFU) of PaLM (arXiv 2204.02311, appendix B; which, however, counts all pairs).

The backward pass of a matrix product is two of the same size, one for the gradient of its input and one for that of its
weights; a frozen layer leaves out the second, and also the first where nothing in front of it trains. Stage 1 of EVE freezes
the decoder, but its gradients must reach the patch embedding: its forward pass is one part, its backward pass another one.

Decoder, head and teacher are counted by formula. Patch embedding, projector and supervisions, which variants replace, are run
on the meta device under torch's counter: a new one needs no formula.

Notation: S samples, N images, P patches, Q image tokens, M teacher cells, D width, h heads, d head width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_eve.errors import ConfigError
from lit_eve.models.decoders import blocks_of, final_norm_of, modules_by_tokens
from lit_eve.models.own import model_class_of
from lit_eve.models.patch_embeddings import takes_grid
from lit_eve.models.splice import ImageLayout
from lit_eve.models.supervision import ImageBatch, Supervision
from lit_eve.planning.meta import shapes_alone
from lit_eve.training.stages import Stage, get_stage
from lit_eve.vision_towers import blocks_of_tower, build_tower, prefix_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from lit_eve.models import EveConfig, EveForConditionalGeneration


class Flops(NamedTuple):
    """Floating point operations of one part."""

    forward: float
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Workload:
    """The samples of a step, or of a typical one; everything here but attention is linear in their sums.

    Args:
        lengths: (S,) tokens of each sample, image slots included, padding not.
        image_grid_hw: (N, 2) rows and columns of patches of each image.
        num_targets: supervised tokens.
    """

    lengths: np.ndarray
    image_grid_hw: np.ndarray
    num_targets: int

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> Workload:
        """The samples of a packed batch (docs/data_format.md) on the CPU; tails without a target are padding."""
        cu_seqlens = batch["cu_seqlens"].long()
        sample = torch.searchsorted(cu_seqlens, batch["target_positions"], right=True) - 1
        lengths = cu_seqlens.diff()[sample.unique()]
        return cls(lengths.numpy(), batch["image_grid_hw"].numpy(), len(sample))

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        return int(self.lengths.sum())

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_grid_hw)

    @property
    def num_patches(self) -> int:
        """P."""
        return int(self.image_grid_hw.prod(1).sum())

    def attended_pairs(self, window: int | None = None, images: np.ndarray | None = None) -> int:
        """Pairs of a query and a key that it sees.

        Args:
            window: how many tokens it sees of those not behind it, itself with them; None: all.
            images: (N,) tokens of each image, where these see each other in both directions and whole; None: they do not.
        """
        lengths = self.lengths.astype(np.int64)
        full = lengths if window is None else np.minimum(lengths, window)  # queries that see all before them
        pairs = full * (full + 1) // 2 + (lengths - full) * full
        if images is None:
            return int(pairs.sum())
        size = images.astype(np.int64)
        beyond = 0 if window is None else np.maximum(size - window, 0)  # tokens of an image in front of its last window
        return int(pairs.sum() + (size * (size - 1) // 2 + beyond * (beyond + 1) // 2).sum())


def training_flops(
    config: EveConfig,
    workload: Workload,
    stage: str | Stage | Mapping[str, Any],
    teacher: PreTrainedConfig | None = None,
    auxiliaries: Mapping[str, nn.Module] | None = None,
) -> dict[str, Flops]:
    """Count a training step; needs no weights, and a fraction of a second for a model of 7B.

    Args:
        config: the architecture.
        workload: the samples of the step, of all ranks and accumulated batches or of one: the result is for these.
        stage: what trains.
        teacher: the config of the vision encoder that is aligned to, if there is one (of a model:
            ``model.teacher.config``).
        auxiliaries: modules of a subclass of LitEve, which the stage may name; their own arithmetic is not counted.

    Returns:
        ``patch_embedding``, ``projector``, ``decoder`` (its linear layers), ``attention`` (of the decoder), ``lm_head``, and
        the heads of the supervisions (``aligner``), and ``teacher`` where one of them looks at its hidden states.

    Raises:
        ConfigError: the decoder has weights that are neither in linear layers nor in embedding tables (mixtures of experts), or
            a part asks what is in a tensor.
    """
    model = meta_model(config, teacher)
    get_stage(stage).apply(model, auxiliaries)
    flops = _images(model, workload)
    flops |= _decoder(model, workload)
    flops |= _supervision(model, workload)
    if any(one.teacher_states for one in model.supervisions.values()):
        flops["teacher"] = Flops(_teacher(model, workload))
    return flops


def total_flops(flops: Mapping[str, Flops]) -> float:
    """All parts and both passes."""
    return sum(part.total for part in flops.values())


def meta_model(config: EveConfig, teacher: PreTrainedConfig | None = None) -> EveForConditionalGeneration:
    """The model without weights: all that follows from its shapes, in no memory.

    Args:
        config: the architecture; it is copied.
        teacher: attach a teacher of this config; the heads of the supervisions are attached without it too.
    """
    from lit_eve.losses import FrozenTeacher
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.models.supervision import needs_teacher

    config = copy.deepcopy(config)
    with torch.device("meta"):
        model = (model_class_of(config) or EveForConditionalGeneration)(config)
        if teacher is not None:
            tower = build_tower(copy.deepcopy(teacher))
            model.attach_teacher(FrozenTeacher(tower, config.teacher_layer, config.teacher_image_size))
        elif not any(needs_teacher(entry["name"]) for entry in config.supervision or ()):
            model.attach_supervision()
    return model


# ---- the parts


def _images(model: EveForConditionalGeneration, workload: Workload) -> dict[str, Flops]:
    """Patch embedding and projector."""
    tokens = workload.num_patches // model.geometry.pool_size**2  # Q
    patches = torch.empty(workload.num_patches, model.geometry.patch_dim, device="meta")
    image_of_token = torch.empty(tokens, dtype=torch.long, device="meta")
    grid = {}
    if takes_grid(model.patch_embedding):
        grid["grid_hw"] = torch.empty(workload.num_images, 2, dtype=torch.long, device="meta")
    embedding = _measure(model.patch_embedding, patches, image_of_token, workload.num_images, **grid)
    # The projector meets the tokens, the class token of each image, and the split token once.
    count = tokens + model.geometry.class_token * workload.num_images + model.geometry.split_token
    embedded = torch.empty(count, model.patch_embedding.width, device="meta").requires_grad_(_trains(model.patch_embedding))
    return {"patch_embedding": embedding, "projector": _measure(model.projector, embedded)}


def _decoder(model: EveForConditionalGeneration, workload: Workload) -> dict[str, Flops]:
    """Linear layers, attention and head."""
    decoder, head, config = model.get_decoder(), model.get_output_embeddings(), model.config.text_config
    _check_dense(decoder)
    scored, valued = _head_widths(config)
    scored = model.positions.score_width(scored)
    carries = _carries_gradient(model)
    linear, attention, images = Flops(0), Flops(0), None
    if not model.image_attention.is_causal:  # whatever a kind hides, kernels compute
        images = model.geometry.num_tokens_of_grid(torch.from_numpy(workload.image_grid_hw)).numpy()
    slots = int(model.geometry.num_tokens_of_grid(torch.from_numpy(workload.image_grid_hw)).sum())
    tokens = {None: workload.num_tokens, True: slots, False: workload.num_tokens - slots}
    for layer, reached in zip(blocks_of(decoder), carries[1:], strict=True):
        for module, of_images in modules_by_tokens(layer):
            if isinstance(module, nn.Linear):
                linear = _add(linear, _linear(module, tokens[of_images], needs_input=reached))
        pairs = workload.attended_pairs(window_of(layer, config), images)
        forward = 2 * config.num_attention_heads * (scored + valued) * pairs  # scores, and weighted values
        attention = _add(attention, Flops(forward, 2 * forward * reached))
    return {"decoder": linear, "attention": attention, "lm_head": _linear(head, workload.num_targets, needs_input=carries[-1])}


def _head_widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Channels of a head in queries and keys, and in values."""
    if getattr(config, "v_head_dim", None):  # latent attention (MLA)
        return config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads  # d
    return (2 * width, 2 * width) if config.model_type == "diffllama" else (width, width)  # that one attends twice


def window_of(block: nn.Module, config: PreTrainedConfig) -> int | None:
    """How many tokens a block's attention sees of those not behind the query, itself with them; None: all."""
    # Where only some layers have a window, their attention knows; Mistral's asks the config.
    return getattr(block.self_attn, "sliding_window", getattr(config, "sliding_window", None))


def _carries_gradient(model: EveForConditionalGeneration) -> list[bool]:
    """Whether something in front of each hidden state trains, from the embeddings (0) to the output of the last layer (L)."""
    # Heads may stand behind the projector too, as mask tokens do.
    changing = [one.head for one in model.supervisions.values() if type(one).change_tokens is not Supervision.change_tokens]
    carries = [_trains(model.patch_embedding, model.projector, model.get_input_embeddings(), *changing)]
    for layer in blocks_of(model.get_decoder()):
        carries.append(carries[-1] or _trains(layer))
    carries[-1] |= _trains(final_norm_of(model.get_decoder()))
    return carries


def _supervision(model: EveForConditionalGeneration, workload: Workload) -> dict[str, Flops]:
    """The losses at image tokens with their heads, by the names of the heads."""
    device, images = torch.device("meta"), workload.num_images
    input_ids = torch.empty(1, workload.num_tokens, dtype=torch.long, device=device)
    grid = torch.empty(images, 2, dtype=torch.long, device=device)
    layout = ImageLayout.of(input_ids, grid, workload.num_patches, model.geometry, model.config.image_token_id)
    patches = torch.empty(workload.num_patches, model.geometry.patch_dim, device=device)
    teacher = model.teacher
    teacher_grid = None if teacher is None else teacher.grid
    seeds = torch.empty(images, dtype=torch.long, device=device)
    pixels = None
    if teacher is not None:
        pixels = torch.empty(images, 3, teacher.grid.image_size, teacher.grid.image_size, dtype=torch.uint8, device=device)
    batch = ImageBatch(layout, grid, model.geometry, teacher_grid, lambda: patches, seeds, pixels)
    carries, width = _carries_gradient(model), model.config.text_config.hidden_size
    flops = {}
    for part, one in model.supervisions.items():
        shape = len(one.positions(batch)), width
        hidden = [torch.empty(shape, device=device).requires_grad_(carries[tap]) for tap in one.taps]
        targets = [torch.empty(images, teacher.grid.side**2, teacher.width, device=device) for _ in one.teacher_states]
        flops[part] = _measure(one.loss, batch, hidden, targets)
    return flops


def _teacher(model: EveForConditionalGeneration, workload: Workload) -> float:
    """A vision transformer over whole squares: forward pass only."""
    teacher = model.teacher
    patches = teacher.grid.side**2
    tokens = patches + prefix_tokens(teacher.config)
    flops = 2 * patches * teacher.width * 3 * teacher.grid.patch_size**2
    for layer in blocks_of_tower(teacher.backbone):
        flops += sum(_linear(module, tokens).forward for module in layer.modules() if isinstance(module, nn.Linear))
        flops += 4 * teacher.width * tokens**2
    return flops * workload.num_images


# ---- the arithmetic


def _trains(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _add(a: Flops, b: Flops) -> Flops:
    return Flops(a.forward + b.forward, a.backward + b.backward)


def _linear(module: nn.Linear, rows: int, needs_input: bool = False) -> Flops:
    forward = 2 * module.weight.numel() * rows
    return Flops(forward, forward * (needs_input + module.weight.requires_grad))


def _check_dense(decoder: nn.Module) -> None:
    kind = type(decoder).__name__
    if final_norm_of(decoder) is None or not all(hasattr(layer, "self_attn") for layer in blocks_of(decoder)):
        raise ConfigError(f"the FLOPs of {kind} are not known: not all its layers are attention and linear layers")
    known = {id(module.weight) for module in decoder.modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    for name, parameter in decoder.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in known:
            raise ConfigError(f"the FLOPs of {kind} are not known: {name} is in no linear layer")


def _measure(module: Callable[..., Any], *inputs: Any, **named: Any) -> Flops:
    """Run a module or function forward and backward under torch's counter, on the meta device."""
    name = type(module).__name__ if isinstance(module, nn.Module) else module.__qualname__
    with shapes_alone(f"the work of {name}"):
        with FlopCounterMode(display=False) as forward:
            outputs = module(*inputs, **named)
        outputs = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if x is not None]
        outputs = [x for x in outputs if x.requires_grad]
        with FlopCounterMode(display=False) as backward:
            if outputs:
                torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
    return Flops(forward.get_total_flops(), backward.get_total_flops())
