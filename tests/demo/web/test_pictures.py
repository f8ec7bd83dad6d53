from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageFile

from lit_eve.demo.web import pictures
from lit_eve.demo.web.pictures import PREVIEW, Limits, plain_name, read_picture
from lit_eve.errors import LitEveError
from lit_eve.processing import EveV1Geometry, ImageGeometry
from lit_eve.processing.images import load_image, patchify
from tests.demo.web.files import animation, bomb, encoded
from tests.models.tiny import GEOMETRY as SIZES

GEOMETRY = ImageGeometry.from_dict(SIZES)
OTHER = EveV1Geometry(image_size=64, patch_size=8, pool_size=1, cells=4)


@pytest.mark.parametrize("size", [(640, 480), (31, 200), (1, 1), (1000, 7)])
def test_a_model_sees_in_a_kept_image_what_it_sees_in_the_file(size: tuple[int, int]) -> None:
    content = encoded(Image.effect_noise(size, 80).convert("RGB"))
    picture = read_picture("a.png", content, {GEOMETRY, OTHER})
    for geometry in (GEOMETRY, OTHER):
        patches, grid = patchify(load_image(content), geometry)
        kept, kept_grid = patchify(picture.views[geometry], geometry)
        assert torch.equal(kept, patches) and kept_grid == grid
    assert picture.preview.startswith("data:image/") and max(load_image(picture.preview).size) == min(max(size), PREVIEW)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.png", b"just a text", "notes.png: the image cannot be opened: it is no image of a known kind"),
        ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no image of a known kind"),
        ("empty.png", b"", "empty.png: the file is empty"),
        ("big.png", b"x" * 2001, "big.png: the file has 2,001 bytes, more than the limit of 2,000"),
        ("bomb.png", bomb(30_000, 30_000), r"bomb.png: .*900000000 pixels\) exceeds limit"),
        ("wide.png", bomb(50, 21), "wide.png: the image has 50 x 21 pixels, more than the limit of 1000"),
        ("../../etc/passwd", b"root", "passwd: the image cannot be opened"),
    ],
    ids=["text", "svg", "empty", "bytes", "bomb", "pixels", "path"],
)
def test_what_is_refused_is_refused_before_it_is_decoded(
    name: str, content: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the pixels were read"))
    with pytest.raises(LitEveError, match=sentence) as refusal:
        read_picture(name, content, {GEOMETRY}, Limits(bytes=2000, pixels=1000))
    assert "/" not in str(refusal.value).split(":")[0]


def test_of_an_animation_the_first_picture_is_seen_and_this_is_told() -> None:
    picture = read_picture("moves.gif", animation(), {GEOMETRY})
    assert picture.note == "moves.gif has several pictures: the model sees the first."
    assert picture.views[GEOMETRY].getpixel((5, 5))[0] > 200  # the red one
    assert read_picture("still.png", encoded(Image.new("RGB", (9, 9))), {GEOMETRY}).note == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.png", "cat.png"),
        ("a\n\0b\u202ec.png", "abc.png"),
        ("", "image"),
        ("/", "image"),
        ("x" * 200 + ".png", "x" * 50 + "...xxx.png"),
    ],
)
def test_names(name: str, shown: str) -> None:
    assert plain_name(name) == shown


def test_a_small_image_is_shown_without_loss() -> None:
    image = Image.effect_noise((20, 20), 80).convert("RGB")
    assert load_image(pictures.data_url(image)).tobytes() == image.tobytes()
