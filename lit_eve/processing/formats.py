"""Kinds of image files: one list for annotations, shards, documents and chats, so that no step takes what the next refuses.

Pillow opens and decodes them by itself. Left out are kinds that it hands to another program (EPS to Ghostscript, WMF to
Windows), kinds of which it knows the header only (BUFR, GRIB, HDF5, MPEG), ICNS, some of whose files it cannot decode, and
formats of laboratories whose pixels are no colours (IM, SPIDER).
"""

from __future__ import annotations

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
    "MPO": ("mpo",),
    "BLP": ("blp",),
    "CUR": ("cur",),
    "DCX": ("dcx",),
    "DDS": ("dds",),
    "DIB": ("dib",),
    "FITS": ("fits",),
    "FLI": ("fli", "flc"),
    "FTEX": ("ftex", "ftc", "ftu"),
    "GBR": ("gbr",),
    "ICO": ("ico",),
    "MSP": ("msp",),
    "PCX": ("pcx",),
    "PIXAR": ("pxr",),
    "PSD": ("psd",),
    "QOI": ("qoi",),
    "SGI": ("sgi",),
    "SUN": ("ras",),
    "TGA": ("tga",),
    "XBM": ("xbm",),
    "XPM": ("xpm",),
}
"""Pillow's name of a kind -> extensions of its files; shards are written with the first."""

OPENED_AS = tuple(name for name in FORMATS if name != "MPO")  # Pillow opens that one as JPEG

IMAGE_EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions) | {"heic", "heif", "jxl"}
"""Extensions of images; the last three are images that Pillow cannot open, and are refused as such."""
