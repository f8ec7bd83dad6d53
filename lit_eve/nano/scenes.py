"""Procedural scenes: coloured shapes on a light background, as a pure function of a seed, and their pictures.

Why the world looks as it does (each point was measured to matter for a model of half a million weights): things are dark on a
light background, lie on cells of two visual tokens (16 pixels) with half a pixel of jitter, and come in two sizes, one smaller
than a visual token and one four times as large.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from lit_eve.errors import ConfigError

CELL = 16  # pixels: two visual tokens
TOKEN = 8  # pixels: one visual token; image sides and the grid's origin are multiples of it
JITTER = 4  # a thing's centre is off its cell's centre by up to this many eighths of a pixel
SUPERSAMPLING = 8  # things are drawn this many times larger and averaged down

SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 7.0, "large": 14.0}  # diameter in pixels
COLOURS = {
    "red": (215, 25, 30),
    "green": (25, 150, 50),
    "blue": (30, 60, 215),
    "orange": (240, 140, 0),
    "purple": (140, 30, 160),
    "black": (25, 25, 25),
}
VERTICAL = ("top", "middle", "bottom")
HORIZONTAL = ("left", "centre", "right")


@dataclass(frozen=True)
class Thing:
    """One shape on the grid; ``shift`` is its offset from the cell's centre in eighths of a pixel (x, y)."""

    shape: str
    colour: str
    size: str
    row: int
    column: int
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scene:
    """What is to be seen on one image.

    Attributes:
        width, height: pixels.
        origin: pixel (x, y) of the upper left corner of the grid of cells.
        background: its colour, 0..255 per channel.
        things: in reading order (row by row).
    """

    width: int
    height: int
    origin: tuple[int, int]
    background: tuple[int, int, int]
    things: tuple[Thing, ...]

    @property
    def rows(self) -> int:
        return self.height // CELL

    @property
    def columns(self) -> int:
        return self.width // CELL

    @property
    def layout(self) -> tuple:
        """The scene without jitter and background: two scenes with the same layout deserve the same words."""
        things = tuple((t.shape, t.colour, t.size, t.row, t.column) for t in self.things)
        return (self.width, self.height, self.origin, things)

    def place(self, thing: Thing) -> str:
        """Where a thing is, in two words: "top left", "middle centre"..."""
        return f"{VERTICAL[_third(thing.row, self.rows)]} {HORIZONTAL[_third(thing.column, self.columns)]}"


def _third(index: int, count: int) -> int:
    """0 for the first cell of a row or column, 2 for the last one, 1 for those between."""
    return 0 if index == 0 else 2 if index == count - 1 else 1


@dataclass(frozen=True)
class SceneSpec:
    """What scenes are drawn from.

    Args:
        long_side: pixels of the longer side of each image.
        short_sides: the shorter side is one of these; repeat a value to draw it more often.
        counts: the number of things is one of these; repeat a value to draw it more often.
        pairs: how often two things that are alone share a row or a column and differ in colour and shape (relations are asked
            about those).
        background: lowest and highest value of the background's channels; lower it to make things harder to see.
    """

    long_side: int = 48
    short_sides: tuple[int, ...] = (32, 32, 40, 48)
    counts: tuple[int, ...] = (1, 2, 2, 3, 4)
    pairs: float = 0.6
    background: tuple[int, int] = (205, 255)

    def __post_init__(self) -> None:
        for side in (self.long_side, *self.short_sides):
            if side % TOKEN or side < 2 * CELL:
                raise ConfigError(f"scene sides must be multiples of {TOKEN} and at least {2 * CELL} pixels, not {side}")
        if max(self.short_sides) > self.long_side:
            raise ConfigError(f"short_sides holds {max(self.short_sides)}, more than long_side ({self.long_side})")
        if not 1 <= min(self.counts) <= max(self.counts) <= 4:
            raise ConfigError(f"counts must lie between 1 and 4, not {self.counts}")
        if not 0 <= self.background[0] <= self.background[1] <= 255:
            raise ConfigError(f"background must be two rising values of 0..255, not {self.background}")


def sample_scene(seed: str | int, spec: SceneSpec = SceneSpec()) -> Scene:
    """The scene of a seed.

    Colours and shapes come from a small palette per scene, so that counts above one and unique things are both common.
    """
    rng = random.Random(seed)
    width, height = spec.long_side, rng.choice(spec.short_sides)
    if rng.random() < 0.5:
        width, height = height, width
    origin = tuple(TOKEN * rng.randrange(side % CELL // TOKEN + 1) for side in (width, height))
    rows, columns = height // CELL, width // CELL

    count = rng.choice(spec.counts)
    if count == 2 and rng.random() < spec.pairs:
        cells = _aligned_cells(rng, rows, columns)
        colours, shapes = rng.sample(tuple(COLOURS), 2), rng.sample(SHAPES, 2)
    else:
        cells = rng.sample(range(rows * columns), count)
        colours = rng.choices(rng.sample(tuple(COLOURS), rng.randint(1, 3)), k=count)
        shapes = rng.choices(rng.sample(SHAPES, rng.randint(1, 3)), k=count)
    things = tuple(
        Thing(
            shape=shape,
            colour=colour,
            size=rng.choice(tuple(SIZES)),
            row=cell // columns,
            column=cell % columns,
            shift=(rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER)),
        )
        for cell, colour, shape in zip(sorted(cells), colours, shapes, strict=True)
    )
    background = tuple(rng.randint(*spec.background) for _ in range(3))
    return Scene(width, height, origin, background, things)


def _aligned_cells(rng: random.Random, rows: int, columns: int) -> list[int]:
    """Two cells of one row or of one column."""
    if rng.random() < 0.5:
        row = rng.randrange(rows)
        return [row * columns + column for column in rng.sample(range(columns), 2)]
    column = rng.randrange(columns)
    return [row * columns + column for row in rng.sample(range(rows), 2)]


def scenes(name: str, seed: int, spec: SceneSpec = SceneSpec()) -> Iterator[Scene]:
    """The endless row of scenes of a data set: other names or seeds give other scenes."""
    index = 0
    while True:
        yield sample_scene(f"{name}/{seed}/{index}", spec)
        index += 1


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image with smooth edges."""
    pixels = np.empty((scene.height, scene.width, 3), np.uint8)
    pixels[:] = scene.background
    for thing in scene.things:
        x, y = scene.origin[0] + CELL * thing.column, scene.origin[1] + CELL * thing.row
        cover = _coverage(thing.shape, thing.size, thing.shift)
        pixels[y : y + CELL, x : x + CELL] = scene.background + cover * np.subtract(COLOURS[thing.colour], scene.background)
    return Image.fromarray(pixels)


def png(scene: Scene) -> bytes:
    """The scene's image as the bytes of a PNG file."""
    buffer = BytesIO()
    draw(scene).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


@cache
def _coverage(shape: str, size: str, shift: tuple[int, int]) -> np.ndarray:
    """How much of each pixel of a cell a shape covers: float32 (CELL, CELL, 1) of 0..1."""
    side = CELL * SUPERSAMPLING
    image = Image.new("L", (side, side))
    paint = ImageDraw.Draw(image)
    x, y = (side / 2 + offset * SUPERSAMPLING / 8 for offset in shift)
    radius = SIZES[size] * SUPERSAMPLING / 2
    left, top, right, bottom = x - radius, y - radius, x + radius - 1, y + radius - 1
    if shape == "circle":
        paint.ellipse((left, top, right, bottom), fill=255)
    elif shape == "square":
        paint.rectangle((left, top, right, bottom), fill=255)
    elif shape == "triangle":
        paint.polygon(((left, bottom), (right, bottom), (x, top)), fill=255)
    else:
        arm = radius * 0.36
        paint.rectangle((left, y - arm, right, y + arm - 1), fill=255)
        paint.rectangle((x - arm, top, x + arm - 1, bottom), fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float32)[..., None] / 255
