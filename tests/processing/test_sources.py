"""Where images come from, against transformers' own ``load_image`` and ``to_pil_image``."""

from __future__ import annotations

import base64
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image as known

from lit_eve.errors import SampleError
from lit_eve.processing import image_size, load_image
from lit_eve.processing.inputs import images_of
from lit_eve.processing.sources import describe
from tests.processing.conftest import picture

PHOTO = picture(30, 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.png"
    PHOTO.save(path)
    return path


@pytest.fixture
def server(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The address of a server of the photo's folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(path.parent))

        def do_GET(self) -> None:
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", "/a%20photo.png")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def same(source: object, other: Image.Image = PHOTO) -> bool:
    return np.array_equal(np.array(load_image(source)), np.array(other)) and image_size(source) == other.size


def test_texts_as_transformers_reads_them(path):
    data = base64.b64encode(path.read_bytes()).decode()
    lines = base64.encodebytes(path.read_bytes()).decode()
    for source in (str(path), data, lines, f"data:image/png;base64,{data}"):
        assert same(source, known(source))
    assert same(f"data:image/png;base64,{lines}") and same(f"DATA:;base64,{data.replace('+', '%2B')}")
    assert same({"base64": data}) and same({"base64": data.encode()}) and same({"base64": f"data:image/png;base64,{data}"})


def test_files_by_all_their_names(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    for source in (
        path,
        str(path),
        path.as_uri(),
        f"file://localhost{path.as_uri()[7:]}",
        "~/a photo.png",
        Path("~/a photo.png"),
    ):
        assert same(source)
    monkeypatch.chdir(path.parent)
    assert same("a photo.png")
    with pytest.raises(SampleError, match=r"^x: file://elsewhere/a\.png is a file of another machine"):
        load_image("file://elsewhere/a.png", "x")


def test_contents_and_open_files(path):
    data = path.read_bytes()
    opened = io.BytesIO(data)
    opened.read()
    for source in (
        data,
        bytearray(data),
        memoryview(data),
        opened,
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": path},
    ):
        assert same(source)
    with path.open("rb") as file:
        assert same(file)
    with path.open(encoding="latin-1") as file, pytest.raises(SampleError, match="^x: .* opened in binary mode"):
        load_image(file, "x")


def test_downloads(server):
    for url in (f"{server}/a%20photo.png", f"{server}/moved.png"):
        assert same(url, PHOTO)
    for url, reason in (
        (f"{server}/gone.png", "HTTP 404 File not found"),
        ("http://127.0.0.1:9/a.png", "refused"),
        ("http://", "no host"),
    ):
        with pytest.raises(SampleError, match=f"^x: {url} cannot be downloaded: .*{reason}"):
            load_image(url, "x")
    with pytest.raises(SampleError, match="no image of a known kind"):
        load_image(f"{server}/", "x")


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("channels", ["first", "last"])
def test_arrays(kind, channels):
    wrap = torch.from_numpy if kind == "torch" else np.asarray
    for mode in ("RGB", "L", "RGBA"):
        image = PHOTO.convert(mode)
        pixels = np.array(image).reshape(20, 30, -1)
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == "first" else pixels
        for array in (
            pixels,
            pixels.astype(np.int64),
            pixels.astype(np.float32),
            pixels / 255,
            (pixels / 255).astype(np.float32),
        ):
            assert same(wrap(array), load_image(image))
        if mode != "RGBA":
            assert same(wrap(pixels), to_pil_image(wrap(pixels)).convert("RGB"))
    assert same(wrap(np.array(PHOTO.convert("L"))), PHOTO.convert("L").convert("RGB"))


def test_arrays_of_other_kinds():
    half = torch.linspace(0, 1, 256).reshape(16, 16).to(torch.bfloat16).requires_grad_()
    expected = np.rint(half.detach().float().numpy() * 255)
    assert np.array_equal(np.array(load_image(half))[:, :, 0], expected)
    mask = np.eye(8, dtype=bool)
    assert np.array_equal(np.array(load_image(mask))[:, :, 0], mask * 255)
    assert load_image(np.zeros((3, 5, 3), np.uint8)).size == (3, 5)  # ambiguous: channels first, as for transformers


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((2, 5, 7)), "1, 3 or 4 channels, first or last, got the shape \\(2, 5, 7\\)"),
        (np.zeros((2, 3, 5, 7)), "has 2 or 3 dimensions, got the shape \\(2, 3, 5, 7\\)"),
        (np.zeros((3, 0, 7)), "has no pixels"),
        (np.full((3, 5, 7), -2.1), "got -2.1 to -2.1: give them before normalisation"),
        (np.full((3, 5, 7), np.nan), "got nan to nan"),
        (np.full((5, 7), 256), "must be in 0..255, or floats in 0..1, got 256 to 256"),
        (np.full((5, 7), "a"), "must hold integers or floats"),
        (3, "it is no path, URL, base64 text, bytes, array or PIL image, but int"),
        ([[1, 2]], "but list"),
        ({"file": "a.png"}, "needs one of the keys bytes, image, url, path, base64, image_url"),
        ({"base64": 3}, "the key base64 must hold a text, got int"),
        ("data:image/png;base64", "has no comma"),
        ("no such file.png", "No such file or directory: 'no such file.png'"),
        ("cats", "No such file or directory: 'cats'"),  # four letters are valid base64
        ("a\0b.png", "null byte|cannot be opened"),
    ],
)
def test_what_is_no_image_is_said_in_one_sentence(source, words):
    for function in (load_image, image_size):
        with pytest.raises(SampleError, match=f"^sample 7: .*({words})"):
            function(source, "sample 7")


@pytest.mark.parametrize("cut", [1, 150, 300])
def test_no_message_contains_the_picture(path, cut):
    data = base64.b64encode(path.read_bytes()).decode()[:-cut]
    for source in (data, data * 20, {"base64": data}, f"data:image/png;base64,{data}", "!" + data, path.read_bytes()[:-200]):
        for name in (None, "x"):
            with pytest.raises(SampleError) as error:
                load_image(source, name)
            assert "iVBOR" not in str(error.value) and len(str(error.value)) < 200
    assert describe(data) == "image" and describe("http://a/" + "b" * 500) == "http://a/" + "b" * 111 + "..."


def test_the_image_parts_of_messages():
    parts = [
        {"type": "image", "image": PHOTO},
        {"type": "image", "url": "a"},
        {"type": "image", "path": "b"},
        {"type": "image", "base64": "c"},
        {"type": "image_url", "image_url": {"url": "d", "detail": "low"}},
        {"type": "image_url", "image_url": "e"},
        {"type": "image", "image": {"bytes": b"f", "path": None}},
    ]
    expected = [PHOTO, "a", "b", {"base64": "c"}, "d", "e", {"bytes": b"f", "path": None}]
    assert images_of([{"role": "user", "content": parts}]) == expected
    with pytest.raises(SampleError, match="needs one of the keys"):
        images_of([{"role": "user", "content": [{"type": "image"}]}])
