"""What a user's module holds: a subclass of LitEve with a head and a loss of its own, a model with another mask."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_eve.models import EveForConditionalGeneration
from lit_eve.training import LitEve


class PixelEve(LitEve):
    """Predicts the mean colour of every image from the hidden states of its tokens."""

    forward_arguments = {"output_hidden_states": True}
    stock_inference = True

    def auxiliary_parts(self):
        return {"pixel_head": nn.Linear(self.model.config.text_config.hidden_size, 3)}

    def auxiliary_losses(self, batch, output):
        hidden = output.hidden_states[-1].flatten(0, 1)
        slots = batch["input_ids"].flatten() == self.model.config.image_token_id
        return {"pixel_loss": (0.1 * self.pixel_head(hidden[slots]).float().square().sum(), "images")}


class FullAttention(EveForConditionalGeneration):
    """Every token sees every other of its sample."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.language_model.model.layers:
            layer.self_attn.is_causal = False


class FullEve(LitEve):
    model_class = FullAttention
    stock_inference = True


class TouchedEve(LitEve):
    """Changes the model behind the config's back."""

    def configure_model(self):
        super().configure_model()
        for layer in self.model.language_model.model.layers:
            layer.self_attn.is_causal = False


class GrownEve(LitEve):
    """Hangs a head to the model."""

    def configure_model(self):
        super().configure_model()
        self.model.pixel_head = nn.Linear(32, 3)


class LateEve(LitEve):
    """Makes a head too late."""

    def configure_model(self):
        super().configure_model()
        self.pixel_head = nn.Linear(32, 3)


class BareEve(LitEve):
    """Has a parameter in no module."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = nn.Parameter(torch.ones(3))


class NamesakeEve(LitEve):
    """Has a head with the name of a part of the model."""

    def auxiliary_parts(self):
        return {"projector": nn.Linear(2, 2)}


class ReadingEve(LitEve):
    """Has a head whose size hangs on a weight."""

    def auxiliary_parts(self):
        return {"pixel_head": nn.Linear(2, int(self.model.projector.state_dict().popitem()[1].sum()))}


class MaskingEve(LitEve):
    """Asks its model otherwise in training than anybody could later."""

    def _forward(self, *args, **kwargs):
        return super()._forward(*args, **kwargs)


def see_all(module, query, key, value, attention_mask, **kwargs):
    """An attention without a mask."""
    return sdpa_attention_forward(module, query, key, value, None, **kwargs | {"is_causal": False})


AttentionInterface.register("see_all", see_all)


class AttendingEve(LitEve):
    """Chooses an attention of its own."""

    stock_inference = True

    def configure_model(self):
        super().configure_model()
        self.model.language_model.set_attn_implementation("see_all")


class TurnedEve(LitEve):
    """Turns positions by other angles."""

    stock_inference = True

    def configure_model(self):
        super().configure_model()
        self.model.get_decoder().rotary_emb.inv_freq.mul_(0.5)


class BufferedEve(LitEve):
    """Puts a buffer into the model."""

    def configure_model(self):
        super().configure_model()
        self.model.projector.register_buffer("scale", torch.ones(3))


class NoisyModel(EveForConditionalGeneration):
    """Draws what is not saved."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("noise", torch.randn(4), persistent=False)


class NoisyEve(LitEve):
    model_class = NoisyModel
