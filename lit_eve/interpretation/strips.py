"""Pictures for logs and reports, drawn without matplotlib's layout: a training draws many of them.

`word_figure` is the same for notebooks and papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from lit_eve.interpretation.overlay import overlay
from lit_eve.interpretation.words import WordMap, share_of
from lit_eve.plotting import INK, SOFT
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource

_GAP = 8  # between panels, in pixels


def word_strip(image: ImageSource, words: Sequence[WordMap], index: int = 0, *, limit: int = 8, side: int = 112) -> Image.Image:
    """The image, then one overlay per word; above each the word, and how much of the attention is on the patches.

    Every overlay has a scale of its own: its brightest spot is where the word looked most, however little that is.

    Args:
        image: what the model saw.
        words: of :func:`~lit_eve.interpretation.word_maps`; none if the answer is empty.
        index: which of the images of the words it is.
        limit: of the words that are shown, the first ones.
        side: longest side of a panel, in pixels.
    """
    picture = load_image(image)
    scale = side / max(picture.size)
    shown = picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.NEAREST)
    panels = [(shown, "image", "")]
    panels += [(overlay(picture, word.maps[index], size=side), word.word, share_of(word.maps[index])) for word in words[:limit]]
    font = _font(max(9, side // 9))
    line = font.size + 3
    width = max(shown.width, 5 * font.size)
    strip = Image.new("RGB", (len(panels) * (width + _GAP) - _GAP, shown.height + 2 * line + 2), "white")
    draw = ImageDraw.Draw(strip)
    for left, (panel, word, share) in zip(range(0, strip.width, width + _GAP), panels, strict=True):
        draw.text((left, 0), _shortened(word, font, width), fill=INK, font=font)
        draw.text((left, line), share, fill=SOFT, font=font)
        strip.paste(panel, (left, 2 * line + 2))
    return strip


def beside(columns: Sequence[tuple[str, Image.Image]], size: int = 12) -> Image.Image:
    """Strips beside each other, with a label above each.

    Args:
        columns: label (one line) and strip.
        size: of the labels' letters, in pixels.
    """
    font = _font(size)
    widths = [max(strip.width, round(font.getlength(label))) + 3 * _GAP for label, strip in columns]
    top = size + _GAP
    sheet = Image.new("RGB", (sum(widths) - 3 * _GAP, top + max(strip.height for _, strip in columns)), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for (label, strip), width in zip(columns, widths, strict=True):
        draw.text((left, 0), label, fill=SOFT, font=font)
        sheet.paste(strip, (left, top))
        left += width
    return sheet


def stacked(rows: Sequence[tuple[str, Image.Image]], size: int = 12) -> Image.Image:
    """Strips below each other, with a label to the left of each.

    Args:
        rows: label (may have several lines) and strip.
        size: of the labels' letters, in pixels.
    """
    font = _font(size)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max(round(draw.multiline_textbbox((0, 0), label, font=font)[2]) for label, _ in rows)
    margin += 2 * _GAP if margin else 0
    height = sum(strip.height + 2 * _GAP for _, strip in rows) - 2 * _GAP
    sheet = Image.new("RGB", (margin + max(strip.width for _, strip in rows), height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for label, strip in rows:
        draw.multiline_text((0, top + strip.height // 2), label, fill=INK, font=font, anchor="lm")
        sheet.paste(strip, (margin, top))
        top += strip.height + 2 * _GAP
    return sheet


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """What of a text fits into a line."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The letters of the figures."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)
