"""Backgrounds of the hard world: the texture that was drawn, and nothing of it in the plain one."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from lit_eve.errors import ConfigError
from lit_eve.nano.world.scenes import COLOURS, SceneSpec, draw, sample_scene
from lit_eve.nano.world.textures import Texture, background, sample_texture

FLAT = Texture((200, 100, 50), angle=0.0, stripes=0.0, stripe_angle=0.0, wavelength=8.0, phase=0.0, noise=0.0, seed=1)
HARD = SceneSpec(background=(40, 255), textured=True, tint=25)


def test_one_colour_runs_into_the_other() -> None:
    pixels = background(64, 32, (0, 0, 0), FLAT)
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.float32
    steps = np.diff(pixels[0, :, 0])
    assert np.allclose(steps, 200 / 64, atol=1e-3), "evenly, along the width at angle 0"
    assert np.allclose(pixels[0], pixels[-1])
    down = background(64, 32, (0, 0, 0), replace(FLAT, angle=math.pi / 2))
    assert np.allclose(down[:, 0], down[:, -1], atol=1e-3) and down[-1, 0, 0] > 190 > 10 > down[0, 0, 0]


def test_stripes_have_their_length_and_noise_its_deviation() -> None:
    grey = (128, 128, 128)
    plain = replace(FLAT, colour=grey)
    striped = background(64, 64, grey, replace(plain, stripes=40.0))[0, :, 0] - 128
    spectrum = np.abs(np.fft.rfft(striped))
    assert spectrum.argmax() == 64 // 8 and striped.max() == pytest.approx(40, abs=4)
    noisy = background(64, 64, grey, replace(plain, noise=20.0))
    assert noisy[..., 0].std() == pytest.approx(20, rel=0.1)
    assert np.array_equal(noisy[..., 0], noisy[..., 2]), "brightness, no colour"
    assert np.array_equal(noisy, background(64, 64, grey, replace(plain, noise=20.0)))
    assert not np.array_equal(noisy, background(64, 64, grey, replace(plain, noise=20.0, seed=2)))


def test_values_stay_within_a_channel() -> None:
    for seed in range(50):
        texture = sample_texture(random.Random(seed), (0, 255), 100.0, 60.0)
        pixels = background(32, 32, (255, 255, 255), texture)
        assert pixels.min() >= 0 and pixels.max() <= 255


def test_a_hard_scene_is_a_function_of_its_seed_and_shows_its_things() -> None:
    scenes = [sample_scene(f"hard/{seed}", HARD) for seed in range(20)]
    for seed, scene in enumerate(scenes):
        assert scene == sample_scene(f"hard/{seed}", HARD)
        pixels = np.asarray(draw(scene)).astype(int)
        for thing in scene.things:
            colour = np.clip(np.add(COLOURS[thing.colour], thing.tint), 0, 255).astype(int)
            x, y = 16 * thing.column + 8 + thing.shift[0] // 8, 16 * thing.row + 8 + thing.shift[1] // 8
            assert np.abs(pixels[y, x] - colour).max() <= 1, "its middle has its colour, whatever lies behind"
    tints = {channel for scene in scenes for thing in scene.things for channel in thing.tint}
    assert min(tints) < -15 and max(tints) > 15 and max(map(abs, tints)) <= 25
    layouts = {scene.layout for scene in scenes}
    assert layouts == {replace(scene, texture=None).layout for scene in scenes}, "the same words belong to it"


def test_plain_scenes_have_no_texture() -> None:
    scene = sample_scene("plain/0")
    assert scene.texture is None and all(thing.tint == (0, 0, 0) for thing in scene.things)
    corner = np.asarray(draw(replace(scene, things=())))
    assert (corner == scene.background).all()


@pytest.mark.parametrize("key", ["stripes", "noise", "tint"])
def test_negative_amounts_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        SceneSpec(**{key: -1})
