"""An attention of Llama's form whose queries and keys have more channels, for row and column (NEO, arXiv 2510.14979).

Of the forward of transformers' ``LlamaAttention`` (and those of Mistral, Qwen2 and Qwen3, which add a window or norms), only
what becomes of queries and keys is another: q = [q_t (d), q_h (d / 2), q_w (d / 2)], k alike; values keep d channels.

Notation: B rows, T tokens per row, h heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from lit_eve.models.decoders.swapped import Swapped, class_before, swap

Tables = tuple[Tensor, Tensor]
"""Cosines and sines."""

NEW = ("q_proj_hw", "k_proj_hw", "q_norm_h", "q_norm_w", "k_norm_h", "k_norm_w")
"""Modules that the attention gets, named as upstream."""


class NativeAttention(Swapped):
    """Mixed into an attention module by :func:`widen`."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tables,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        rotary_hw: tuple[Tables, Tables] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the attention's own.

        Args:
            hidden_states: (B, T, D).
            position_embeddings: (B, T, d) each, by time.
            rotary_hw: (B, T, d / 2) each, by row and by column; None: all are words, which are not turned.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (layer(hidden_states).view(heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        queries, keys = [query], [key]  # (B, T, h, d) each, then (B, T, h, d / 2) twice
        for parts, layer, norms in (
            (queries, self.q_proj_hw, (self.q_norm_h, self.q_norm_w)),
            (keys, self.k_proj_hw, (self.k_norm_h, self.k_norm_w)),
        ):
            halves = layer(hidden_states).view(heads).chunk(2, -1)
            parts += [norm(half) for norm, half in zip(norms, halves, strict=True)]
        turned = []
        for q, k, tables in zip(queries, keys, (position_embeddings, *(rotary_hw or (None, None))), strict=True):
            q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, h, T, ...)
            turned.append((q, k) if tables is None else apply_rotary_pos_emb(q, k, *tables))
        query, key = (torch.cat(parts, -1) for parts in zip(*turned, strict=True))  # (B, h, T, 2 d)
        value = value.transpose(1, 2)  # (B, h, T, d)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,  # by d, not by 2 d
            sliding_window=getattr(self, "sliding_window", getattr(self.config, "sliding_window", None)),
            **kwargs,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def widen(attention: nn.Module, norm: nn.Module) -> None:
    """Give an attention channels for row and column, in place; what they begin with is drawn by torch.

    Args:
        attention: of Llama's form.
        norm: an RMSNorm of its block; those of the new channels are of the same class.
    """
    like, width = attention.q_proj.weight, attention.head_dim // 2
    where = {"device": like.device, "dtype": like.dtype}
    for name in "qk":
        rows, columns = getattr(attention, f"{name}_proj").weight.shape
        setattr(attention, f"{name}_proj_hw", nn.Linear(columns, rows, bias=False, **where))
        for axis in "hw":
            setattr(attention, f"{name}_norm_{axis}", class_before(norm)(width, eps=norm.variance_epsilon).to(**where))
    swap(attention, NativeAttention)
