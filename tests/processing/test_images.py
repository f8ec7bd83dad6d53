"""Images: the official pixels bit for bit, every mode and orientation, and clear errors for what is no usable image."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from safetensors.torch import load_file

from lit_eve.errors import SampleError
from lit_eve.processing import CLIP_MEAN, CLIP_STD, EveV1Geometry, image_size, load_image, patchify
from lit_eve.processing.formats import FORMATS
from lit_eve.processing.images import image_format
from tests.processing.conftest import IMAGES, REFERENCE, SMALL, TEACHER, picture

OFFICIAL = load_file(REFERENCE / "a672" / "pixels.safetensors")
ORDER = [name.removesuffix(".png") for name in json.loads((REFERENCE / "a672" / "results.json").read_text())["image_order"]]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def unpatchify(patches: torch.Tensor, rows: int, cols: int, p: int, k: int) -> torch.Tensor:
    """Written out with loops, so that the order of patches is checked against its description."""
    image = torch.zeros(3, rows * p, cols * p, dtype=patches.dtype)
    index = 0
    for window_row in range(rows // k):
        for window_col in range(cols // k):
            for y in range(window_row * k, window_row * k + k):
                for x in range(window_col * k, window_col * k + k):
                    image[:, y * p : y * p + p, x * p : x * p + p] = patches[index].view(3, p, p)
                    index += 1
    return image


@pytest.mark.parametrize("index", range(4), ids=ORDER)
def test_official_pixels(index):
    image = load_image(IMAGES / f"{ORDER[index]}.png")
    patches, [(rows, cols)] = patchify(image, SMALL)
    assert patches.dtype == torch.uint8
    mask = OFFICIAL["mask"][index, 0].bool()
    valid = OFFICIAL["u8"][index][:, mask.any(1)][:, :, mask.any(0)]
    assert torch.equal(unpatchify(patches, rows, cols, p=14, k=2), valid)


@pytest.mark.parametrize("index", range(4), ids=ORDER)
def test_official_teacher_pixels(index):
    canvas = TEACHER.canvas(load_image(IMAGES / f"{ORDER[index]}.png"), SMALL)
    assert torch.equal(canvas, OFFICIAL["clip_u8"][index])


def test_normalisation_formula_reproduces_the_official_floats():
    values = torch.arange(256)
    normalised = (values / 255 - torch.tensor(CLIP_MEAN)[:, None]) / torch.tensor(CLIP_STD)[:, None]
    assert torch.equal(normalised, OFFICIAL["lut"])


def test_other_pool_and_patch_sizes():
    geometry = EveV1Geometry(image_size=72, patch_size=4, pool_size=3, cells=6)
    patches, [(rows, cols)] = patchify(picture(72, 36), geometry)
    assert (rows, cols) == (9, 18)
    assert torch.equal(unpatchify(patches, rows, cols, p=4, k=3), torch.from_numpy(np.array(picture(72, 36))).permute(2, 0, 1))


def test_a_convolution_is_a_product_with_the_patches():
    weight = torch.randn(5, 3, 14, 14)
    image = load_image(IMAGES / "wide.png")
    patches, [(rows, cols)] = patchify(image, SMALL)
    pixels = torch.from_numpy(np.array(image.resize(SMALL.resized(*image.size), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    expected = torch.nn.functional.conv2d(pixels[None].float(), weight, stride=14)[0]  # (5, rows, cols)
    products = (patches.float() @ weight.flatten(1).T).T  # (5, P)
    windows = products.view(5, rows // 2, cols // 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(5, rows, cols)
    torch.testing.assert_close(windows, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "RGBX", "I", "F", "La", "RGBa"])
def test_modes(mode):
    base = Image.new("RGB", (40, 20), (200, 200, 200))
    base.paste((30, 30, 30), (0, 0, 20, 20))
    if mode in ("La", "RGBa"):
        image = base.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    elif mode == "P":
        image = base.quantize(8)
    else:
        image = base.convert("L").convert(mode) if mode in ("I", "F") else base.convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB" and loaded.size == (40, 20)
    expected = np.array(base) if mode != "1" else np.array(base.convert("1").convert("RGB"))
    assert np.abs(np.array(loaded).astype(int) - expected).max() <= 3


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for image in (Image.fromarray(values), Image.open(io.BytesIO(encoded(Image.fromarray(values))))):
        assert image.mode == "I;16"
        assert np.array(load_image(image))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.array(load_image(Image.fromarray(values.astype(np.int32))))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floats_in_0_to_1():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32))
    assert np.array(load_image(image))[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_are_seen_over_white(kind):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    if kind == "RGBA":
        data = encoded(image)
    elif kind == "LA":
        data = encoded(image.convert("LA"))
    elif kind == "P":
        palette = Image.new("P", (2, 1))
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.putpixel((1, 0), 1)
        data = encoded(palette, transparency=1)
    else:
        opaque = Image.new(kind, (2, 1))
        opaque.putpixel((1, 0), 7 if kind == "L" else (7, 7, 7))
        data = encoded(opaque, transparency=7 if kind == "L" else (7, 7, 7))
    assert np.array(load_image(data))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    upright = picture(48, 24)
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
            8: "ROTATE_270"}  # fmt: skip
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(stored, kind, exif=exif, **options)
    assert image_size(data) == (48, 24)
    loaded = load_image(data)
    assert loaded.size == (48, 24)
    assert np.abs(np.array(loaded).astype(int) - np.array(upright)).max() <= 6
    assert image_size(Image.open(io.BytesIO(data))) == load_image(Image.open(io.BytesIO(data))).size == (48, 24)


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_with(chunk: bytes, behind: bool, frames: int = 1) -> bytes:
    """A PNG with a chunk in front of its pixels or behind them."""
    options = {"save_all": True, "append_images": [Image.new("RGB", (60, 40))] * (frames - 1)} if frames > 1 else {}
    data = encoded(picture(60, 40), "PNG", **options)
    place = len(data) - 12 if behind else 33  # before IEND, behind IHDR
    check = struct.pack(">I", zlib.crc32(chunk))
    return data[:place] + struct.pack(">I", len(chunk) - 4) + chunk + check + data[place:]


RAW_PROFILE = f"\nexif\n{len(exif_of(6).tobytes()):8}\n{exif_of(6).tobytes().hex()}\n".encode()
CHUNKS = {
    "exif": b"eXIf" + exif_of(6).tobytes()[6:],
    "profile": b"zTXtRaw profile type exif\0\0" + zlib.compress(RAW_PROFILE),
    "plain profile": b"tEXtRaw profile type exif\0" + RAW_PROFILE,
    "xmp": b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP.encode(),
    "something else": b"tEXtdate:create\0today",
}


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("kind", CHUNKS)
def test_png_orientation_wherever_it_stands(kind, behind, frames):
    data = png_with(CHUNKS[kind], behind, frames)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert expected.size == ((60, 40) if kind == "something else" or (behind and frames == 2) else (40, 60))
    assert image_size(data) == expected.size
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.array_equal(np.array(load_image(source)), np.array(expected))
    opened = Image.open(io.BytesIO(data))  # asked for its size first
    assert image_size(opened) == expected.size and np.array_equal(np.array(load_image(opened)), np.array(expected))


def test_png_size_is_read_without_decoding(monkeypatch):
    data = png_with(CHUNKS["something else"], behind=True)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(data) == (60, 40)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"exif": exif_of(6)}) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO")),
        *((kind, {"xmp": XMP.encode()}) for kind in ("JPEG", "WEBP", "AVIF", "GIF")),
        ("TIFF", {"tiffinfo": {700: XMP.encode()}}),
        ("WEBP", {"exif": exif_of(6), "xmp": XMP.encode().replace(b'"6"', b'"3"')}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_orientation_is_that_of_pillow(kind, options):
    data = encoded(picture(60, 40), kind, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert image_size(data) == expected.size and np.array_equal(np.array(load_image(data)), np.array(expected))


MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "PA", "I", "F", "I;16")
REFUSED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "PDF", "PALM", "ICNS", "IM", "SPIDER"}
Image.init()


@pytest.mark.parametrize("kind", sorted(Image.SAVE))
@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
def test_every_format_that_pillow_writes(kind):
    """What is accepted by its header is decoded, upright and over white; the rest is refused by both."""
    for mode, data in written_in_all_modes(picture(32, 48), kind):
        if kind in REFUSED or (kind, mode) == ("TIFF", "LAB"):
            for function in (image_size, load_image):
                with pytest.raises(SampleError, match="no image of a known kind|convert it to RGB"):
                    function(data)
            continue
        reference = Image.open(io.BytesIO(data))
        loaded = load_image(data)
        assert image_format(data) in FORMATS
        assert loaded.size == image_size(data) == ImageOps.exif_transpose(reference).size
        if reference.mode not in ("I", "F", "I;16"):
            if reference.has_transparency_data:
                reference = Image.alpha_composite(Image.new("RGBA", reference.size, "white"), reference.convert("RGBA"))
            assert np.array_equal(np.array(loaded), np.array(reference.convert("RGB"))), mode
        elif (kind, mode) not in (("PPM", "I"), ("ICO", "I;16")):  # Pillow makes other values of these
            grey = np.array(picture(32, 48).convert("L")).astype(int)
            assert np.abs(np.array(loaded)[..., 0].astype(int) - grey).max() <= 1, mode


def written_in_all_modes(base, kind):
    """(mode, file) for all modes that Pillow writes."""
    for mode in MODES:
        if mode == "I;16":
            image = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
        else:
            image = base.convert("L").convert(mode) if mode in ("I", "F", "PA") else base.convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.new("L", image.size, 128))
        with suppress(Exception):  # whatever a plugin raises for a mode that it does not know
            yield mode, encoded(image, kind)


def test_dark_16_bit_files_stay_dark():
    values = np.array([[0, 100, 200]], dtype=np.uint16)
    assert np.array(load_image(encoded(Image.fromarray(values), "PPM")))[0, :, 0].tolist() == [0, 0, 1]


def test_broken_exif_does_not_lose_the_photo():
    data = encoded(picture(20, 10), "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert load_image(data).size == image_size(data) == (20, 10)


def test_sources(tmp_path):
    image = picture(20, 10)
    path = tmp_path / "a.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image):
        assert np.array_equal(np.array(load_image(source)), np.array(image))
        assert image_size(source) == (20, 10)
    assert load_image(image) is not image and image.mode == "RGB"


def test_the_first_frame_of_an_animation():
    data = encoded(Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert load_image(data).getpixel((0, 0)) == (254, 0, 0) or load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(SampleError, match="^sample 7: the image cannot be (decoded|opened)"):
        load_image(data[: len(data) // 2], "sample 7")


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, None], ids=["empty", "text", "png", "none"]
)
def test_not_an_image(data):
    for function in (load_image, image_size):
        with pytest.raises(SampleError, match="^sample 7: the image cannot be opened") as error:
            function(data, "sample 7")
        assert "0x" not in str(error.value)  # reports of two runs are the same


def test_missing_files_name_themselves(tmp_path):
    path = tmp_path / "gone.jpg"
    for function in (load_image, image_size):
        with pytest.raises(SampleError, match=re.escape(f"{path}: the image cannot be opened")):
            function(path)


def test_bombs_are_refused_before_they_are_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    for function in (load_image, image_size):
        with pytest.raises(SampleError, match="^sample 7: the image"):
            function(bomb, "sample 7")
    for function in (load_image, image_size):
        with pytest.raises(SampleError, match="^sample 7: the image has 100 x 50 pixels, more than the limit of 4999"):
            function(picture(100, 50), "sample 7", max_pixels=4999)
        function(picture(100, 50), "sample 7", max_pixels=5000)


def test_narrow_images():
    for size in ((200, 1), (1, 200), (400, 2)):
        assert load_image(Image.new("RGB", size)).size == size
        patches, [(rows, cols)] = patchify(Image.new("RGB", size), EveV1Geometry())
        assert len(patches) == rows * cols == 48 * 2
    for size in ((201, 1), (1, 201)):
        with pytest.raises(SampleError, match="^sample 7: the image of .* is narrower than the limit of 1:200"):
            load_image(Image.new("RGB", size), "sample 7")
    assert load_image(Image.new("RGB", (201, 1)), max_aspect_ratio=201).size == (201, 1)


def test_empty_images():
    with pytest.raises(SampleError, match="^sample 7: the image of 0 x 3 pixels is empty"):
        load_image(Image.new("RGB", (0, 3)), "sample 7")
