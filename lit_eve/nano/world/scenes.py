"""Procedural scenes: coloured shapes on a background, as a pure function of a seed, and their pictures.

Why the world looks as it does (each point was measured to matter for a model of half a million weights): things are dark on a
light background, lie on cells of one visual token (16 pixels) with half a pixel of jitter, and come in two sizes, the larger
of four times the area. With one cell per token an image reads as the text does from which the language model learnt to answer
(`language.glyph_map`): a token per cell, a split token at the end of each row.
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
from lit_eve.nano.world.textures import Texture, background, sample_texture

CELL = 16  # pixels: one visual token; image sides are multiples of it
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
LONGEST = 4  # cells in the longest row or column that there are words for
ROWS = tuple(f"row-{number}" for number in range(1, LONGEST + 1))
COLUMNS = tuple(f"column-{number}" for number in range(1, LONGEST + 1))


@dataclass(frozen=True)
class Thing:
    """One shape on the grid.

    Attributes:
        shift: offset from the cell's centre in eighths of a pixel (x, y).
        tint: what is added to the channels of its colour.
    """

    shape: str
    colour: str
    size: str
    row: int
    column: int
    shift: tuple[int, int] = (0, 0)
    tint: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """What is to be seen on one image.

    Attributes:
        width, height: pixels.
        background: its colour, 0..255 per channel.
        things: in reading order (row by row).
        texture: what lies over the background's colour.
    """

    width: int
    height: int
    background: tuple[int, int, int]
    things: tuple[Thing, ...]
    texture: Texture | None = None

    @property
    def rows(self) -> int:
        return self.height // CELL

    @property
    def columns(self) -> int:
        return self.width // CELL

    @property
    def layout(self) -> tuple:
        """The scene without jitter, tints and background: two scenes with the same layout deserve the same words."""
        things = tuple((t.shape, t.colour, t.size, t.row, t.column) for t in self.things)
        return (self.width, self.height, things)

    def place(self, thing: Thing) -> str:
        """Where a thing is, in two words: "row-1 column-3". Counted from the first row and column: a causal model that has
        read a thing's token knows what came before it, not whether another row or column follows.
        """
        return f"{ROWS[thing.row]} {COLUMNS[thing.column]}"


@dataclass(frozen=True)
class SceneSpec:
    """What scenes are drawn from.

    Args:
        long_side: pixels of the longer side of each image.
        short_sides: the shorter side is one of these; repeat a value to draw it more often.
        counts: the number of things is one of these; repeat a value to draw it more often.
        palette: the fewest and the most colours, and shapes, that the things of one scene are drawn from: few make counts
            above one common, many make things unique.
        pairs: how often two things that are alone share a row or a column and differ in colour and shape (relations are asked
            about those).
        background: lowest and highest value of the background's channels; lower it to make things harder to see.
        textured: whether backgrounds run from one colour to another and have stripes and noise.
        stripes: greatest amplitude of the stripes, in values of a channel.
        noise: standard deviation of the noise, in values of a channel.
        tint: by how much each channel of a thing's colour may be off.
    """

    long_side: int = 64
    short_sides: tuple[int, ...] = (32, 32, 48, 64)
    counts: tuple[int, ...] = (1, 2, 2, 3, 4, 4)
    palette: tuple[int, int] = (1, 4)
    pairs: float = 0.6
    background: tuple[int, int] = (205, 255)
    textured: bool = False
    stripes: float = 45.0
    noise: float = 28.0
    tint: int = 0

    def __post_init__(self) -> None:
        for side in (self.long_side, *self.short_sides):
            if side % CELL or side < 2 * CELL:
                raise ConfigError(f"scene sides must be multiples of {CELL} and at least {2 * CELL} pixels, not {side}")
        if self.long_side > LONGEST * CELL:
            raise ConfigError(f"long_side is {self.long_side}, but there are words for {LONGEST * CELL} pixels at most")
        if max(self.short_sides) > self.long_side:
            raise ConfigError(f"short_sides holds {max(self.short_sides)}, more than long_side ({self.long_side})")
        if not 1 <= min(self.counts) <= max(self.counts) <= 4:
            raise ConfigError(f"counts must lie between 1 and 4, not {self.counts}")
        if not 1 <= self.palette[0] <= self.palette[1] <= len(SHAPES):
            raise ConfigError(f"palette must be two rising values of 1..{len(SHAPES)}, not {self.palette}")
        if not 0 <= self.background[0] <= self.background[1] <= 255:
            raise ConfigError(f"background must be two rising values of 0..255, not {self.background}")
        if min(self.stripes, self.noise, self.tint) < 0:
            raise ConfigError("stripes, noise and tint must not be negative")


def sample_scene(seed: str | int, spec: SceneSpec = SceneSpec()) -> Scene:
    """The scene of a seed."""
    rng = random.Random(seed)
    width, height = spec.long_side, rng.choice(spec.short_sides)
    if rng.random() < 0.5:
        width, height = height, width
    rows, columns = height // CELL, width // CELL

    count = rng.choice(spec.counts)
    if count == 2 and rng.random() < spec.pairs:
        cells = _aligned_cells(rng, rows, columns)
        colours, shapes = rng.sample(tuple(COLOURS), 2), rng.sample(SHAPES, 2)
    else:
        cells = rng.sample(range(rows * columns), count)
        colours = rng.choices(rng.sample(tuple(COLOURS), rng.randint(*spec.palette)), k=count)
        shapes = rng.choices(rng.sample(SHAPES, rng.randint(*spec.palette)), k=count)
    things = tuple(
        Thing(
            shape=shape,
            colour=colour,
            size=rng.choice(tuple(SIZES)),
            row=cell // columns,
            column=cell % columns,
            shift=(rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER)),
            tint=tuple(rng.randint(-spec.tint, spec.tint) for _ in range(3)) if spec.tint else (0, 0, 0),
        )
        for cell, colour, shape in zip(sorted(cells), colours, shapes, strict=True)
    )
    colour = tuple(rng.randint(*spec.background) for _ in range(3))
    texture = sample_texture(rng, spec.background, spec.stripes, spec.noise) if spec.textured else None
    return Scene(width, height, colour, things, texture)


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
    pixels = background(scene.width, scene.height, scene.background, scene.texture)
    for thing in scene.things:
        x, y = CELL * thing.column, CELL * thing.row
        cell = pixels[y : y + CELL, x : x + CELL]
        colour = np.clip(np.add(COLOURS[thing.colour], thing.tint), 0, 255)
        cell += _coverage(thing.shape, thing.size, thing.shift) * (colour - cell)
    return Image.fromarray(pixels.astype(np.uint8))


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
