"""Scenes and their pictures."""

from itertools import islice

import numpy as np
import pytest

from lit_eve.errors import ConfigError
from lit_eve.nano.world.scenes import CELL, COLOURS, Scene, SceneSpec, Thing, draw, png, sample_scene, scenes
from lit_eve.processing import EveV1Geometry
from lit_eve.processing.images import load_image

NANO = EveV1Geometry(image_size=64, patch_size=8, pool_size=2, cells=4)


def some(name: str, count: int = 300, seed: int = 0, **spec) -> list[Scene]:
    return list(islice(scenes(name, seed, SceneSpec(**spec)), count))


def test_a_scene_is_a_pure_function_of_its_seed():
    assert some("a", 20) == some("a", 20)
    assert not set(some("a")) & set(some("b"))
    assert not set(some("a")) & set(some("a", seed=1))


def test_images_come_in_many_shapes_that_the_geometry_keeps():
    sizes = {(scene.width, scene.height) for scene in some("a")}
    assert len(sizes) == 5
    for size in sizes:
        assert max(size) == 64 and min(size) in (32, 48, 64)
        assert NANO.resized(*size) == size


def test_the_picture_shows_the_things_and_nothing_else():
    for scene in some("a", 50):
        pixels = np.asarray(draw(scene)).astype(int)
        assert pixels.shape == (scene.height, scene.width, 3)
        differs = (pixels != scene.background).any(-1)
        seen = 0
        for thing in scene.things:
            x, y = CELL * thing.column, CELL * thing.row
            assert 0 <= x <= scene.width - CELL and 0 <= y <= scene.height - CELL
            cell = np.s_[y : y + CELL, x : x + CELL]
            seen += differs[cell].sum()
            # the centre belongs to every shape (an arm of a small cross covers it in part)
            assert np.abs(pixels[y + 8, x + 8] - COLOURS[thing.colour]).max() <= 45
            assert differs[cell].sum() > (60 if thing.size == "large" else 15)
        assert differs.sum() == seen


def test_large_things_are_four_times_as_large():
    def area(shape: str, size: str) -> float:
        scene = Scene(32, 32, (255, 255, 255), (Thing(shape, "black", size, 0, 0),))
        return (255 - np.asarray(draw(scene))[..., 0].astype(float)).sum()

    for shape in ("circle", "square", "triangle", "cross"):
        assert area(shape, "large") / area(shape, "small") == pytest.approx(4, rel=0.05)


def test_jitter_moves_a_thing_by_half_a_pixel():
    def centre(shift: tuple[int, int]) -> np.ndarray:
        dark = 255 - np.asarray(draw(Scene(32, 32, (255, 255, 255), (Thing("circle", "black", "large", 0, 0, shift),)))).astype(
            float
        ).mean(-1)
        return np.array([(dark.sum(axis) * np.arange(32)).sum() / dark.sum() for axis in (0, 1)])

    assert centre((4, -4)) - centre((0, 0)) == pytest.approx([0.5, -0.5], abs=0.02)


def test_places_are_counted_from_the_upper_left():
    scene = Scene(64, 32, (255, 255, 255), ())
    places = [scene.place(Thing("circle", "red", "small", row, column)) for row in range(2) for column in range(4)]
    assert places == [f"row-{row} column-{column}" for row in (1, 2) for column in (1, 2, 3, 4)]


def test_png_bytes_hold_the_picture():
    scene = sample_scene(5)
    assert np.array_equal(np.asarray(load_image(png(scene))), np.asarray(draw(scene)))


def test_the_background_can_be_made_harder():
    assert all(max(scene.background) <= 40 for scene in some("a", 20, background=(0, 40)))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"short_sides": (40,)}, "40"),
        ({"short_sides": (80,)}, "80"),
        ({"long_side": 80}, "long_side"),
        ({"counts": (0, 1)}, "counts"),
        ({"palette": (1, 5)}, "palette"),
        ({"background": (200, 100)}, "background"),
    ],
)
def test_impossible_specs_are_refused(arguments, word):
    with pytest.raises(ConfigError, match=word):
        SceneSpec(**arguments)
