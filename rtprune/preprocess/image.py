"""Decodes a page image, after its header has shown that it is one that may be decoded."""

from __future__ import annotations

import binascii
import ctypes
import io
import logging
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rtprune.errors import InvalidInput, Unavailable
from rtprune.preprocess.containers import damaged, reduce
from rtprune.settings import Settings

# Formats that hold pixels and nothing that runs: no EPS (Ghostscript), SVG, PDF, WMF or other programs. Each is
# opened by its own reader, chosen by signature: Image.open would try others, and apply a limit of its own.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}
_ACCEPTED = "PNG, JPEG, WebP, TIFF, GIF and BMP"
_REFUSED = (
    (b"%pdf", "a PDF document; send its pages as images (the client does that)"),
    (b"%!ps", "PostScript, which this server does not run"),
    (b"\xc5\xd0\xd3\xc6", "EPS, which this server does not run"),
    (b"<svg", "SVG, which this server does not render"),
    (b"<?xml", "XML (SVG?), which this server does not render"),
    (b"<!doctype svg", "SVG, which this server does not render"),
)
_REFUSED_BRANDS = ((b"hei", "HEIC"), (b"hev", "HEIC"), (b"mif1", "HEIF"), (b"avi", "AVIF"))
# What scanners and programs write. The rest (old JPEG, LZMA, Zstandard, WebP) is for other trades, and LZMA
# may ask for gigabytes.
_TIFF_FAX = ("tiff_ccitt", "group3", "group4")
_TIFF_COMPRESSIONS = (*_TIFF_FAX, "raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE = 258, 262, (322, 323)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, settings: Settings) -> Image.Image:
    """Decode an encoded image, upright.

    Reads the first frame of an animation and the first page of a multi-page TIFF. Transparency lies on white;
    EXIF orientation is applied; samples of 16 bits are scaled to 8; CMYK is converted without a profile, JPEG's
    by Adobe's convention (inverted); colour profiles are ignored.

    Args:
        data: the file's bytes, or those bytes in base64, which is how JSON carries them: the standard alphabet
            with padding (RFC 4648, section 4), white space allowed, a `data:...;base64,` before it too. What
            such a URL says of its type is not looked at; no other URL is read.
        settings: `max_image_bytes`, `max_pixels` and `max_aspect` are checked before any pixel is decoded.

    Returns:
        Mode L where the file holds only grey, else RGB. A grey page is not made three times as large here:
        resizing acts on each channel alone, so that the views are the same.

    Raises:
        InvalidInput: one sentence that says what is wrong with the image.
        Unavailable: the memory for an image within the limits could not be had.
    """
    data = _file(bytes(data), settings)
    kind = _kind(data)
    if kind is None:
        raise _not_an_image(data)
    data, orientation = reduce(kind, data)
    try:
        image = _READERS[kind](io.BytesIO(data))
        _check(image, kind, settings)
        image.load()
        page = _grey_or_rgb(image)
        return page.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else page
    except InvalidInput:
        raise
    except MemoryError:
        raise Unavailable("The server has not enough free memory to decode this image.") from None
    except Image.DecompressionBombError:
        limit = settings.max_pixels
        raise InvalidInput(f"The image declares too many pixels; at most {limit} are allowed.") from None
    except Exception:  # readers raise a dozen kinds, and none of their messages is for a user
        raise damaged(kind) from None


def _kind(data: bytes) -> str | None:
    """The format that the first bytes name."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)


def _file(data: bytes, settings: Settings) -> bytes:
    """The file's bytes, taken out of base64 where they are in it; their number checked."""
    limit = settings.max_image_bytes
    if _kind(data) is None and len(data) <= limit * 1.4 + 256:  # 4 characters for 3 bytes, and line breaks
        data = _from_base64(data)
    if not data.strip():
        raise InvalidInput("The image is empty: it has no bytes.")
    if len(data) > limit:
        raise InvalidInput(f"The image has {len(data)} bytes; at most {limit} are allowed.")
    return data


def _from_base64(data: bytes) -> bytes:
    """What base64 text holds; anything else as it is."""
    text = data
    if data[:5].lower() == b"data:":
        head, comma, text = data.partition(b",")
        if not comma or not head.lower().endswith(b";base64"):
            raise InvalidInput("The image is a data: URL without base64; send the file or its base64 text.")
    try:
        return binascii.a2b_base64(text.translate(None, b" \t\r\n"), strict_mode=True)
    except binascii.Error:
        if text is not data:
            raise InvalidInput("The image is a data: URL whose base64 text is broken.") from None
        return data


def _not_an_image(data: bytes) -> InvalidInput:
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, name in _REFUSED:
        if start.startswith(signature):
            return InvalidInput(f"The image is {name}; {_ACCEPTED} are read.")
    if data[4:8] == b"ftyp":
        for brand, name in _REFUSED_BRANDS:
            if data[8:12].startswith(brand):
                return InvalidInput(f"The image is {name}, which this server does not read; {_ACCEPTED} are.")
    return InvalidInput(f"The bytes are not an image that can be read; {_ACCEPTED} are.")


def _check(image: ImageFile.ImageFile, kind: str, settings: Settings) -> None:
    """Hold the header to the limits, before a pixel is decoded."""
    width, height = image.size
    if width * height > settings.max_pixels:
        raise InvalidInput(
            f"The image declares {width} x {height} pixels; at most {settings.max_pixels} in all are allowed."
        )
    if max(width, height) > settings.max_aspect * min(width, height):
        raise InvalidInput(
            f"The image has {width} x {height} pixels; a side may be at most {settings.max_aspect} times the other."
        )
    if kind == "BMP" and image.info["compression"] in (1, 2):
        raise InvalidInput("The BMP image is run-length encoded, which is not read; save it as PNG.")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.info["compression"] not in _TIFF_COMPRESSIONS:
            raise InvalidInput("The TIFF image's compression is not read; save it as PNG.")
        across, down = (image.tag_v2.get(tag, 1) for tag in _TIFF_TILE)
        if across * down > settings.max_pixels:
            raise InvalidInput(f"The TIFF image has tiles of {across} x {down} pixels, which is too much.")


def _grey_or_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """To L or RGB: samples of any depth to 8 bits, transparency on white."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return _plain(image)
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        return _from_wide(image)
    if image.mode == "La":
        return _on_white(image.convert("LA"))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image if image.mode == "LA" else image.convert("RGBA"))
    if image.mode not in ("L", "P", "RGB", "CMYK", "YCbCr"):
        raise InvalidInput(f"The image's colour space, {image.mode}, is not read; save it as RGB.")
    return image.convert("RGB")


def _plain(image: Image.Image) -> Image.Image:
    """The picture without its file, so that the file's bytes are freed."""
    page = Image.Image()
    return page._new(image.im)


def _on_white(image: Image.Image) -> Image.Image:
    """LA or RGBA on a white page."""
    alpha = image.getchannel("A")
    picture = image.convert("L" if image.mode == "LA" else "RGB")
    if alpha.getextrema()[0] == 255:
        return picture
    page = Image.new(picture.mode, picture.size, "white")
    page.paste(picture, mask=alpha)
    return page


def _from_sixteen_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Grey of 16 bits (12 in some TIFF files) to 8 by scale; Pillow's own conversion would clip it."""
    top, white_is_zero = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        top = 4095 if image.tag_v2.get(_TIFF_BITS) == (12,) else top
        white_is_zero = image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0  # Pillow leaves 16 bits uninverted
    table = np.rint(np.minimum(np.arange(65536), top) * (255 / top)).astype(np.uint8)
    return Image.fromarray((255 - table if white_is_zero else table)[np.asarray(image)])


def _from_wide(image: Image.Image) -> Image.Image:
    """Signed, 32-bit or floating-point grey to 8 bits.

    Integers are taken as 16-bit samples and refused beyond. Floats are taken as 0 to 1 where they are, else as 0
    to their largest; what is not a number is black.
    """
    values: NDArray[np.float32] = np.asarray(image).astype(np.float32)
    if image.mode == "I":
        if values.min() < 0 or values.max() > 65535:
            raise InvalidInput("The image has 32-bit or negative samples; samples of 1 to 16 bits are read.")
        top = 65535.0
    else:
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        top = max(1.0, float(values.max()))
    return Image.fromarray(np.rint(np.clip(values, 0, top) * (255 / top)).astype(np.uint8))


def _quiet() -> None:
    """Keep what image libraries say about odd files out of the server's log, where anyone could fill it.

    Pillow's libtiff writes a line to stderr for each row that it can't decode, and Pillow has no switch for it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
        for library in {line.split()[-1] for line in maps if "/libtiff" in line}:
            for setter in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                function = getattr(ctypes.CDLL(library), setter)
                function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
                function(None)
    except (OSError, AttributeError):
        return  # another system or build: its messages stay


_quiet()
