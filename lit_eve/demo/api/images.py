"""Images of requests: from ``data:`` URLs, and from other machines where that is allowed; never from this disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from lit_eve.demo.api.remote import is_public, open_public
from lit_eve.demo.web.pictures import LIMITS, Limits
from lit_eve.errors import SampleError
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import download, fetch

if TYPE_CHECKING:
    from lit_eve.processing import ImageGeometry


@dataclass(frozen=True)
class ImageReader:
    """Reads images.

    Args:
        limits: hold before anything is decoded.
        allow_remote: whether ``http:`` and ``https:`` are fetched.
        allowed: which IP addresses may be connected to then.
    """

    limits: Limits = LIMITS
    allow_remote: bool = False
    allowed: Callable[[str], bool] = is_public

    def read(self, url: str, name: str, geometry: ImageGeometry) -> Image.Image:
        """The image, resized as the model sees it, which is all that is kept.

        Args:
            name: what messages call it.
            geometry: of the model; its processor makes of the image the very patches that it makes of the file.

        Raises:
            SampleError: it is not fetched, cannot be had, is too large, or no image.
        """
        image = load_image(self._content(url, name), name, max_pixels=self.limits.pixels)
        return geometry.settled(image)

    def _content(self, url: str, name: str) -> bytes:
        kind = url[:8].lower()
        if kind.startswith("data:"):
            content = fetch(url, name)
            if len(content) > self.limits.bytes:
                raise SampleError(f"{name}: the file has {len(content):,} bytes, more than the limit of {self.limits.bytes:,}")
            return content
        if not kind.startswith(("http://", "https://")):
            raise SampleError(f"{name}: an image is given as a data: URL or by http(s); no file of this machine is read")
        if not self.allow_remote:
            advice = "send a data: URL, or start the server with --allow-remote-images"
            raise SampleError(f"{name}: images of other machines are not fetched: {advice}")
        return download(url, name, self.limits.bytes, partial(open_public, allowed=self.allowed))
