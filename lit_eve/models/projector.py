"""Projectors: from the width of the patch embedding to the width of the decoder.

Upstream: EVEv1/eve/model/multimodal_projector/builder.py.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from lit_eve.errors import ConfigError, check_sizes
from lit_eve.registry import Registry

PROJECTORS: Registry[nn.Module] = Registry("projector")
"""Modules (..., E) -> (..., D), built with the context ``input_size`` (E) and ``output_size`` (D)."""


@PROJECTORS.register("mlp_gelu")
class MlpProjector(nn.Sequential):
    """Linear layers with GELU between them: ``depth`` 1 is a plain linear, 2 is EVE's ``mlp2x_gelu``.

    Args:
        input_size: E.
        output_size: D, also the inner width.
        depth: number of linear layers.
    """

    def __init__(self, input_size: int, output_size: int, depth: int = 2) -> None:
        check_sizes("projector", depth=depth)
        widths = [input_size] + [output_size] * depth
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        super().__init__(*layers[:-1])


@PROJECTORS.register("identity")
class IdentityProjector(nn.Identity):
    """No projector: the patch embedding is as wide as the decoder."""

    def __init__(self, input_size: int, output_size: int) -> None:
        if input_size != output_size:
            raise ConfigError(
                f"projector 'identity' needs patch_embedding.width = {output_size} (the decoder's), got {input_size}"
            )
        super().__init__()
