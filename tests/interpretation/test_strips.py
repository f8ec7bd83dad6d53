from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from lit_eve.interpretation import WordMap
from lit_eve.interpretation.strips import stacked, word_strip
from tests.tiny_model import scene_image


def test_each_word_has_a_panel_whose_brightest_spot_is_where_it_looked() -> None:
    image = scene_image(0)
    rows, columns = image.height // 8, image.width // 8
    places = [(0, columns - 1), (rows - 1, 0), (1, 1)]
    words = []
    for row, column in places:
        heat = torch.full((rows, columns), 0.001)
        heat[row, column] = 0.5
        words.append(WordMap("word", [0], [torch.zeros(1, 1), heat]))
    side = 12 * max(rows, columns)
    strip = word_strip(image, words, 1, side=side)
    top = strip.height - 12 * rows
    panel = (strip.width + 8) // (len(words) + 1)
    for number, (row, column) in enumerate(places, 1):
        left = number * panel
        brightness = np.asarray(strip.crop((left, top, left + 12 * columns, strip.height)), float).sum(-1)
        y, x = np.unravel_index(brightness.argmax(), brightness.shape)
        assert (y // 12, x // 12) == (row, column)


def test_strips_are_bounded_and_can_be_empty() -> None:
    image = scene_image(0)
    heat = torch.ones(2, 2) / 400
    words = [WordMap("a" * 200, [0], [heat])] * 20
    assert word_strip(image, words, limit=3).width == word_strip(image, words[:3]).width
    alone = word_strip(image, [])
    assert alone.height > 112 and alone.width < 140
    sheet = stacked([("step 1", alone), ("step 20", word_strip(image, words, limit=3))])
    assert sheet.width > word_strip(image, words, limit=3).width and sheet.height > 2 * alone.height
    assert stacked([("", alone)]).size == alone.size
    assert isinstance(sheet, Image.Image) and sheet.getpixel((sheet.width - 1, 0)) == (255, 255, 255)
