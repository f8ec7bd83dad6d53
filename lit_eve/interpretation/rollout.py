"""Attention of all layers put together: how much of each image token may have reached the position that predicts a token.

    rollout             R = A'_L ... A'_1 with A' = (A + I) / 2, heads averaged     Abnar & Zuidema 2020, arXiv 2005.00928
    gradient_rollout    R <- R + mean over heads of relu(grad A * A) R              Chefer et al. 2021, arXiv 2103.15679

The gradient is that of the log-probability of one answer token (Chefer et al.: of its logit), so that each token has maps of
its own, and heads that speak against the token are left out.

Both follow R from the top layer down, for the rows that are asked for only: a row vector times a matrix per layer.

Notation: N images, H x W token grid of an image, L layers, h heads, T tokens, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.answers import AnswerAttention
from lit_eve.interpretation.maps import maps_of
from lit_eve.interpretation.recording.attention import check_output, probabilities
from lit_eve.interpretation.recording.intercept import AttentionCall, attention_modules, intercept_attention
from lit_eve.interpretation.teacher_forcing import ForcedAnswer

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration


@torch.no_grad()
def rollout(model: EveForConditionalGeneration, seen: AnswerAttention) -> list[Tensor]:
    """Attention rollout from the positions that predict the answer's tokens.

    Args:
        model: in eval mode; the one that gave the answer.
        seen: what `attend` returned, whichever layers and heads it recorded: all of them count here.

    Returns:
        For each of the N images (A, H, W) float32. Over all tokens of the prompt and the answer so far a row adds up to 1.

    Raises:
        LitEveError: the model's attention cannot be recorded or is no causal softmax attention, or the model is in training
            mode.
    """
    forced = ForcedAnswer.of(model, seen)
    _, layers = _run(model, seen, forced, lambda weights: weights[0].mean(0))  # (T, T) each
    relevance = F.one_hot(forced.positions, forced.input_ids.shape[1]).float()  # (A, T)
    for layer in reversed(layers):
        relevance = (relevance + relevance @ layer) / 2
    return maps_of(model, seen.inputs, relevance[None])


def gradient_rollout(model: EveForConditionalGeneration, seen: AnswerAttention) -> list[Tensor]:
    """Gradient-weighted rollout of each answer token's log-probability.

    The probabilities of all layers and heads are held at once, with their gradients: at least 8 L h T^2 bytes, 4 GB for EVE-7B
    and 700 tokens. Parameters keep their ``grad`` and ``requires_grad``.

    Args:
        model: in eval mode; the one that gave the answer.
        seen: what `attend` returned, whichever layers and heads it recorded: all of them count here.

    Returns:
        For each of the N images (A, H, W) float32, none negative. The scale is that of the gradients: it differs from token to
        token.

    Raises:
        LitEveError: as `rollout`; or under ``torch.inference_mode``, which has no gradients.
    """
    forced = ForcedAnswer.of(model, seen)
    if torch.is_inference_mode_enabled():
        raise LitEveError("gradient_rollout needs gradients, which torch.inference_mode rules out: call it outside")
    with torch.enable_grad():
        logits, layers = _run(model, seen, forced, lambda weights: weights)  # (1, h, T, T) each
        scores = forced.log_probabilities(logits)[0].unbind()  # A numbers
    rows = []
    for score, position in zip(scores, forced.positions, strict=True):
        gradients = torch.autograd.grad(score, layers, retain_graph=score is not scores[-1])
        relevance = F.one_hot(position, forced.input_ids.shape[1]).float()  # (T,)
        for weights, gradient in zip(reversed(layers), reversed(gradients), strict=True):
            relevance = relevance + relevance @ (weights.detach() * gradient)[0].relu().mean(0)
        rows.append(relevance)
    return maps_of(model, seen.inputs, torch.stack(rows)[None])


def _run(
    model: EveForConditionalGeneration, seen: AnswerAttention, forced: ForcedAnswer, keep: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The answer is read again; the attention of each layer goes by way of its probabilities, so that they have gradients.

    Args:
        keep: what to keep of a layer's probabilities (1, h, T, T).

    Returns:
        Logits (1, A, V) of the positions that predict the answer, and what was kept of each layer, the first in front.
    """
    kept: dict[int, Tensor] = {}

    def by_way_of_probabilities(call: AttentionCall) -> tuple[Tensor, None]:
        output, weights = _attention(call)
        kept[call.layer] = keep(weights)
        return output, None

    with torch.no_grad():
        images = {key: seen.inputs[key] for key in ("pixel_values", "image_grid_hw")}
        embeds = model.embed_inputs(forced.input_ids, **images)  # (1, T, D)
    # The graph begins here, so that there is one even where all parameters are frozen.
    embeds.requires_grad_(torch.is_grad_enabled())
    with intercept_attention(model, by_way_of_probabilities):
        numbers = model.number_images(forced.input_ids, images["image_grid_hw"])
        positions = model.position_tokens(forced.input_ids, images["image_grid_hw"])
        given = {"inputs_embeds": embeds, "image_numbers": numbers, "token_positions": positions}
        logits = model(**given, use_cache=False, logits_to_keep=forced.positions).logits
    if len(kept) < len(attention_modules(model)):
        raise LitEveError("the attention of some layers was not seen, so that there is no rollout (compiled ones are not seen)")
    return logits, [kept[layer] for layer in sorted(kept)]


def _attention(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """What the kernel returns (1, T, h, d), and the probabilities (1, h, T, T) that it is computed from here.

    Raises:
        LitEveError: the kernel computes something else.
    """
    weights = probabilities(call)
    value = call.value.repeat_interleave(weights.shape[1] // call.value.shape[1], dim=1)  # (1, h, T, d)
    output = (weights.to(value.dtype) @ value).transpose(1, 2)
    with torch.no_grad():
        check_output(call, output.detach(), call.run()[0])
    return output, weights
