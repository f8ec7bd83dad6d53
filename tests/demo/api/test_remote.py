"""Nothing that a stranger names is fetched from a private network, whichever way leads there."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from urllib.request import Request

import pytest

from lit_eve.demo.api import remote
from lit_eve.demo.api.images import ImageReader
from lit_eve.demo.api.remote import is_public, open_public
from lit_eve.demo.web.pictures import Limits
from lit_eve.errors import LitEveError, SampleError
from lit_eve.processing import ImageGeometry
from lit_eve.processing.sources import download
from tests.demo.api.asking import data_url
from tests.demo.web.files import encoded
from tests.models import tiny
from tests.tiny_model import scene_image

LOOPBACK = "127.0.0.1"
GEOMETRY = ImageGeometry.from_dict(tiny.GEOMETRY)
anywhere = partial(open_public, allowed=lambda address: True)


class Site(http.server.BaseHTTPRequestHandler):
    """``/0.png`` is an image, ``/to/URL`` leads elsewhere, ``/drip`` never ends."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(HTTPStatus.OK)
        self.end_headers()
        if self.path == "/drip":
            while True:
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
                time.sleep(0.02)
        self.wfile.write(encoded(scene_image(0)) if self.path == "/0.png" else b"<html>")

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def site() -> Iterator[str]:
    Site.asked = []
    with http.server.ThreadingHTTPServer((LOOPBACK, 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
        *(".".join(map(str, parts)) for parts in ((10, 0, 0, 1), (172, 16, 0, 1), (192, 168, 1, 1))),
        *("::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::7f00:1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::ffff:169.254.169.254"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("path", ["/0.png", "/to/0.png"])
def test_a_private_address_is_not_even_connected_to(site: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a connection was made"))
    for url in (site, site.replace(LOOPBACK, "localhost"), site.replace(LOOPBACK, "2130706433"), site.replace("http", "https")):
        with pytest.raises(SampleError, match="is at an address of a private network"):
            download(url + path, "x", open_url=open_public)
    assert Site.asked == []


def test_a_redirect_to_a_private_address_is_not_followed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = socket.getaddrinfo

    def names(host: str, *args: object, **options: object) -> list:
        return resolved(LOOPBACK if host == "public.test" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    seen: list[str] = []

    def first_only(address: str) -> bool:
        seen.append(address)
        return len(seen) == 1

    url = site.replace(LOOPBACK, "public.test")
    with pytest.raises(SampleError, match="169.254.169.254 is at an address of a private network"):
        download(f"{url}/to/http://169.254.169.254/latest", "x", open_url=partial(open_public, allowed=first_only))
    assert seen == [LOOPBACK, "169.254.169.254"] and len(Site.asked) == 1


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, answers = socket.getaddrinfo, [LOOPBACK, "169.254.169.254", "169.254.169.254"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **options: resolved(answers.pop(0), *args, **options))
    checked: list[str] = []
    allowed = lambda address: checked.append(address) is None  # noqa: E731
    url = site.replace(LOOPBACK, "rebinding.test")
    assert download(f"{url}/0.png", "x", open_url=partial(open_public, allowed=allowed)) == encoded(scene_image(0))
    assert checked == [LOOPBACK] and len(answers) == 2


def test_one_private_address_among_several_is_enough(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", LOOPBACK)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: places)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a connection was made"))
    with pytest.raises(SampleError, match="is at an address of a private network"):
        download("http://both.test/", "x", open_url=open_public)


@pytest.mark.parametrize("target", ["file://localhost/etc/passwd", "ftp://localhost/x", "/to//to//to/", "data:text/plain,x"])
def test_redirects_lead_to_http_only(site: str, target: str) -> None:
    reason = "unknown url type: ftp" if target.startswith("ftp:") else ""
    with pytest.raises(SampleError, match=f"cannot be downloaded: .*{reason}"):
        download(f"{site}/to/{target}", "x", open_url=anywhere)


def test_proxies_of_the_environment_are_not_asked(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{LOOPBACK}:9")
    assert download(f"{site}/0.png", "x", open_url=anywhere) == encoded(scene_image(0))


def test_a_slow_server_is_left(site: str) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError), anywhere(Request(f"{site}/drip"), 0.5) as response:
        response.read(10_000)
    assert time.monotonic() - start < 5


def test_images_of_other_machines(site: str) -> None:
    read = partial(ImageReader(Limits(), True, lambda address: True).read, name="image 1 of 1", geometry=GEOMETRY)
    own = ImageReader().read(data_url(scene_image(0)), "x", GEOMETRY)
    assert read(f"{site}/0.png").tobytes() == read(f"{site}/to/{site}/0.png").tobytes() == own.tobytes()
    with pytest.raises(SampleError, match="image 1 of 1: the image cannot be opened"):
        read(f"{site}/page")
    size = len(encoded(scene_image(0)))
    small = ImageReader(Limits(bytes=size - 1), True, lambda address: True)
    with pytest.raises(SampleError, match=f"has more than {size - 1:,} bytes"):
        small.read(f"{site}/0.png", "x", GEOMETRY)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://example.com/a.png", "images of other machines are not fetched: send a data: URL, or start the server with"),
        ("HTTPS://example.com/a.png", "images of other machines are not fetched"),
        *(
            (url, "no file of this machine is read")
            for url in ("file://localhost/etc/passwd", "/etc/passwd", "a.png", "", "~/a.png")
        ),
        *((url, "no file of this machine is read") for url in ("ftp://x/a.png", "http:/a.png", "AAAA" * 99, " data:,")),
        ("data:image/png;base64", "the data URL has no comma"),
        ("data:image/png;base64,!", "the image is not valid base64"),
        ("data:text/html,<html>", "the image cannot be opened"),
    ],
)
def test_what_is_no_image_of_a_request(url: str, sentence: str) -> None:
    with pytest.raises(LitEveError, match="x: ") as error:
        ImageReader().read(url, "x", GEOMETRY)
    assert sentence in str(error.value) and "AAAA" not in str(error.value)


def test_limits_hold_for_data_urls() -> None:
    url, (width, height) = data_url(scene_image(0)), scene_image(0).size
    for limits, sentence in (
        (Limits(bytes=99), "more than the limit of 99"),
        (Limits(pixels=99), f"{width} x {height}"),
    ):
        with pytest.raises(SampleError, match=sentence):
            ImageReader(limits).read(url, "x", GEOMETRY)


def test_the_rule_is_the_default() -> None:
    assert ImageReader().allowed is remote.is_public and not ImageReader().allow_remote
