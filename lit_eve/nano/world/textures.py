"""Backgrounds that are not plain: two colours that run into each other, stripes, noise."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

WAVELENGTHS = (4.0, 12.0)  # of stripes, in pixels: about the size of things


@dataclass(frozen=True)
class Texture:
    """What lies over the plain colour of a background.

    Attributes:
        colour: the colour at the far end, 0..255 per channel; the background's own is at the near end.
        angle: direction of the way from one to the other, in radians.
        stripes: amplitude of the stripes, in values of a channel.
        stripe_angle, wavelength, phase: direction and phase in radians, length in pixels.
        noise: standard deviation of each pixel's brightness, in values of a channel.
        seed: of the noise.
    """

    colour: tuple[int, int, int]
    angle: float
    stripes: float
    stripe_angle: float
    wavelength: float
    phase: float
    noise: float
    seed: int


def sample_texture(rng: random.Random, colours: tuple[int, int], stripes: float, noise: float) -> Texture:
    """A texture by chance.

    Args:
        rng: draws it.
        colours: lowest and highest value of the far colour's channels.
        stripes: greatest amplitude of the stripes.
        noise: its standard deviation.
    """
    return Texture(
        colour=tuple(rng.randint(*colours) for _ in range(3)),
        angle=rng.uniform(0, 2 * math.pi),
        stripes=rng.uniform(0, stripes),
        stripe_angle=rng.uniform(0, math.pi),
        wavelength=rng.uniform(*WAVELENGTHS),
        phase=rng.uniform(0, 2 * math.pi),
        noise=noise,
        seed=rng.getrandbits(32),
    )


def background(width: int, height: int, colour: tuple[int, int, int], texture: Texture | None) -> np.ndarray:
    """The empty image: float32 (height, width, 3) of 0..255."""
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = colour
    if texture is None:
        return pixels
    y, x = np.mgrid[0.5:height, 0.5:width].astype(np.float32)
    along = (x / width - 0.5) * math.cos(texture.angle) + (y / height - 0.5) * math.sin(texture.angle)
    near = np.clip(0.5 + along, 0, 1)[..., None]  # (height, width, 1): 0 is this colour, 1 the other
    pixels += near * np.subtract(texture.colour, colour)
    across = x * math.cos(texture.stripe_angle) + y * math.sin(texture.stripe_angle)
    brightness = texture.stripes * np.sin(2 * math.pi * across / texture.wavelength + texture.phase)
    brightness += np.random.default_rng(texture.seed).normal(0, texture.noise, (height, width))
    return np.clip(pixels + brightness[..., None], 0, 255).astype(np.float32)
