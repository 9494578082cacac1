"""Decodes a page image, after its header has shown that it is one that may be decoded."""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

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
    features,
)

from .containers import Samples, damaged, reduce
from .errors import ImageError

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
FORMATS = "PNG, JPEG, WebP, TIFF, GIF and BMP"
# Read where the library for it is installed: Pillow has AVIF itself from 11.3 on, as it was built.
_OPTIONAL = {"AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"), "HEIC": ("pillow_heif", "HeifImageFile")}
_REFUSED = (
    (b"%pdf", "a PDF document; send its pages as images"),
    (b"%!ps", "PostScript, which is not run"),
    (b"\xc5\xd0\xd3\xc6", "EPS, which is not run"),
    (b"<svg", "SVG, which is not rendered"),
    (b"<?xml", "XML (SVG?), which is not rendered"),
    (b"<!doctype svg", "SVG, which is not rendered"),
)
_BRANDS = ((b"hei", "HEIC"), (b"hev", "HEIC"), (b"mif1", "HEIC"), (b"msf1", "HEIC"), (b"avi", "AVIF"))
# What scanners and programs write. The rest (old JPEG, LZMA, Zstandard, WebP) is for other trades, and LZMA
# may ask for gigabytes.
_TIFF_FAX = ("tiff_ccitt", "group3", "group4")
_TIFF_COMPRESSIONS = (*_TIFF_FAX, "raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE, _EXIF_ORIENTATION = 258, 262, (322, 323), 274
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # of a pixel in memory; 4 in other modes
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Limits(NamedTuple):
    """What an image may be, checked before a pixel is decoded.

    Attributes:
        pixels: that the header declares.
        memory: bytes of the decoded picture: a pixel takes 1 in grey and two colours, 2 in grey of 16 bits, 4 in
            colour.
        aspect: the longer side over the shorter.
    """

    pixels: int
    memory: int
    aspect: int


def kind_of(data: bytes) -> str | None:
    """The format that the first bytes name: one of FORMATS in capitals, AVIF, HEIC; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return next((kind for brand, kind in _BRANDS if data[8:12].startswith(brand)), None)
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)


def decode(data: bytes, limits: Limits, page: int = 0) -> Image.Image:
    """Decode an encoded image, upright.

    Reads the first frame of an animation and one page of a TIFF; previews are no pages. Transparency lies on white;
    the orientation is applied, the first that is there of the format's own, EXIF in a PNG's text, and XMP; samples are
    scaled to 8 bits; CMYK is converted without a profile, JPEG's by Adobe's convention (inverted); colour profiles are
    ignored. A JPEG over the limit of memory is decoded at a half, a quarter or an eighth of its size.

    Grey TIFF samples of other types than unsigned 8 and 16 bits: negative ones are black; integers are white at 255
    where none is larger, else at 65,535 (signed 16 bits: 32,767), else at the type's largest value; floats are white
    at 1, or at their largest value.

    Args:
        data: the file's bytes.
        limits: of what the header declares.
        page: of `tiff_pages(data)`.

    Returns:
        Mode L where the file holds only grey, else RGB. A grey page is not made three times as large here:
        resizing acts on each channel alone, so that the views are the same. `info["size"]` is the width and height of
        the page, upright, where the picture is smaller.

    Raises:
        ImageError: one sentence that says what is wrong with the image.
        MemoryError: the memory for an image within the limits could not be had.
    """
    _silence_libtiff()
    kind = kind_of(data)
    if kind is None:
        raise _not_an_image(data)
    reader = _reader(kind)
    data, orientation, samples = reduce(kind, data, page)
    try:
        image = reader(io.BytesIO(data))
        if samples is not None and isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image, limits)
            return upright(_from_samples(image, samples, limits), orientation)
        size = image.size
        _check(image, kind, limits)
        if kind in _OPTIONAL:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        image.load()
        picture = upright(grey_or_rgb(image), orientation)
        if image.size != size:
            picture.info["size"] = size[::-1] if orientation > 4 else size
        return picture
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"The image declares too many pixels; at most {limits.pixels} are allowed."
        ) from None
    except Exception:  # readers raise a dozen kinds, and none of their messages is for a user
        raise damaged(kind) from None


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture as its EXIF orientation (1 to 8) says."""
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _reader(kind: str) -> type[ImageFile.ImageFile]:
    """Pillow's class for a format; an ImageError that says what is missing for one that is read with a library."""
    if kind in _READERS:
        return _READERS[kind]
    module, name = _OPTIONAL[kind]
    try:
        if kind == "AVIF" and not features.check("avif"):
            raise ImportError
        found: type[ImageFile.ImageFile] = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        library = "pillow-heif" if kind == "HEIC" else "Pillow 11.3"
        raise ImageError(
            f"The image is {kind}, which is read with the extra `heif` ({library}); {FORMATS} are read without."
        ) from None
    return found


def _not_an_image(data: bytes) -> ImageError:
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, name in _REFUSED:
        if start.startswith(signature):
            return ImageError(f"The image is {name}; {FORMATS} are read.")
    return ImageError(f"The bytes are not an image that can be read; {FORMATS} are.")


def _check(image: ImageFile.ImageFile, kind: str, limits: Limits) -> None:
    """Hold the header to the limits, before a pixel is decoded."""
    _check_size(image.size, _BYTES.get(image.mode, 4), limits, image)
    if kind == "BMP" and image.info["compression"] in (1, 2):
        raise ImageError("The BMP image is run-length encoded, which is not read; save it as PNG.")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, limits)


def _check_tiff(image: TiffImagePlugin.TiffImageFile, limits: Limits) -> None:
    """Hold a TIFF's compression and tiles to what is read."""
    if image.info["compression"] not in _TIFF_COMPRESSIONS:
        raise ImageError("The TIFF image's compression is not read; save it as PNG.")
    across, down = (image.tag_v2.get(tag, 1) for tag in _TIFF_TILE)
    if across * down > limits.pixels:
        raise ImageError(f"The TIFF image has tiles of {across} x {down} pixels, which is too much.")


def _check_size(size: tuple[int, int], each: int, limits: Limits, image: Image.Image) -> None:
    """Hold a page's size to the limits; `each`: bytes of a pixel. A JPEG is told to scale itself down."""
    width, height = size
    if width * height > limits.pixels:
        raise ImageError(
            f"The image declares {width} x {height} pixels; at most {limits.pixels} in all are allowed."
        )
    if max(width, height) > limits.aspect * min(width, height):
        raise ImageError(
            f"The image has {width} x {height} pixels; a side may be at most {limits.aspect} times the other."
        )
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scale = next((it for it in (1, 2, 4) if width * height * each <= limits.memory * it * it), 8)
        image.draft(None, (width // scale, height // scale))
        width, height = image.size
    if width * height * each > limits.memory:
        raise ImageError(
            f"The image's {width} x {height} pixels take {width * height * each / 1e6:.0f} MB; at most "
            f"{limits.memory / 1e6:.0f} MB are allowed. Save it in grey or with fewer pixels."
        )


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """To L or RGB: samples of any depth to 8 bits by the rule that `decode` states, transparency on white.

    Raises:
        ImageError: another colour space.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return _plain(image)
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        return Image.fromarray(_scaled(np.asarray(image)))
    clear = image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA"
    if image.mode == "La":
        return _on_white(image.convert("LA"))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info or clear:
        return _on_white(image if image.mode == "LA" else image.convert("RGBA"))
    if image.mode not in ("L", "P", "RGB", "CMYK", "YCbCr"):
        raise ImageError(f"The image's colour space, {image.mode}, is not read; save it as RGB.")
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


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (12 in some TIFF files) to 8 by scale; Pillow's own conversion would clip it."""
    top, white_is_zero = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        top = 4095 if image.tag_v2.get(_TIFF_BITS) == (12,) else top
        white_is_zero = image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0  # Pillow leaves 16 bits uninverted
    table = np.rint(np.minimum(np.arange(65536), top) * (255 / top)).astype(np.uint8)
    return Image.fromarray((255 - table if white_is_zero else table)[np.asarray(image)])


def _from_samples(image: ImageFile.ImageFile, samples: Samples, limits: Limits) -> Image.Image:
    """Signed, floating-point or 32-bit samples to 8 bits; `image` has their single bytes side by side."""
    kind = np.dtype(samples.dtype)
    width, height = image.width // (samples.channels * kind.itemsize), image.height
    _check_size((width, height), samples.channels * kind.itemsize, limits, image)
    image.load()
    values = np.asarray(image).view(kind).reshape(height, width, samples.channels)
    if samples.channels in (2, 4):
        values = values[:, :, :-1]  # what is over is alpha
    page = _scaled(values)
    if samples.inverted:
        np.subtract(255, page, out=page)
    return Image.fromarray(page[:, :, 0] if page.shape[2] == 1 else page)


def _scaled(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Samples of any type to 8 bits by the rule that `decode` states."""
    kind = values.dtype
    if kind.kind == "f":
        blocks = (block[np.isfinite(block)] for block in values)
        top: float = max(1.0, *(float(block.max(initial=0)) for block in blocks))
    else:
        highest, largest = int(np.iinfo(kind).max), int(values.max())
        top = next(it for it in (min(255, highest), min(65535, highest), highest) if it >= largest)
    page = np.empty(values.shape, np.uint8)
    for row, block in zip(page, values, strict=True):  # a row at a time, for they take eight times the memory
        numbers = np.nan_to_num(block.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        row[:] = np.rint(np.clip(numbers * (255 / top), 0, 255))
    return page


def quiet() -> None:
    """Keep what Pillow says about odd files out of a program's log, where anyone could fill it."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Pillow's libtiff writes a line to stderr for each row that it can't decode, and Pillow has no switch for it."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
        for library in {line.split()[-1] for line in maps if "/libtiff" in line}:
            for setter in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                function = getattr(ctypes.CDLL(library), setter)
                function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
                function(None)
    except (OSError, AttributeError):
        return  # another system or build: its messages stay
