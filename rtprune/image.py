"""Decodes a page image, after its header has shown that it is one that may be decoded."""

from __future__ import annotations

import base64
import binascii
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from rtprune.errors import InvalidInput
from rtprune.settings import Settings

# Formats that hold pixels and nothing that runs: no EPS (Ghostscript), SVG, PDF, WMF or other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"RIFF",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"GIF8",
    b"BM",
)
_NAMED = (
    (b"%PDF", "a PDF document; send its pages as images (the client does that)"),
    (b"%!PS", "PostScript, which this server does not run"),
    (b"\xc5\xd0\xd3\xc6", "EPS, which this server does not run"),
    (b"<svg", "SVG, which this server does not render"),
    (b"<?xml", "XML (SVG?), which this server does not render"),
)
_ACCEPTED = "PNG, JPEG, WebP, TIFF, GIF and BMP"

# A text or profile chunk may unpack to much more than the file; a page needs neither.
PngImagePlugin.MAX_TEXT_CHUNK = 2**20
PngImagePlugin.MAX_TEXT_MEMORY = 2**22


def decode(data: bytes, settings: Settings) -> Image.Image:
    """Decode an encoded image to RGB, upright.

    Reads the first frame of an animation and the first page of a multi-page TIFF. Transparency lies on white;
    EXIF orientation is applied; 16-bit samples are scaled to 8; colour profiles are ignored.

    Args:
        data: the file's bytes, or those bytes in base64 (standard alphabet, line breaks allowed), which is how
            JSON carries them.
        settings: `max_image_bytes` and `max_pixels` are checked before any pixel is decoded.

    Raises:
        InvalidInput: one sentence that says what is wrong with the image.
    """
    data = _raw(bytes(data), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about oddities that are no reason not to read a page
        image = _open(data, settings)
        try:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            if "truncated" in str(error).lower() or "broken" in str(error).lower():
                raise InvalidInput(f"The image is a damaged or incomplete {image.format} file.") from None
            raise InvalidInput(f"The {image.format} image could not be decoded; it is damaged.") from None


def _raw(data: bytes, settings: Settings) -> bytes:
    """The file's bytes, taken out of base64 where they are in it; its size checked."""
    if not data:
        raise InvalidInput("The image is empty: it has no bytes.")
    limit = settings.max_image_bytes
    # Base64 makes 4 characters of 3 bytes, and may add line breaks.
    if len(data) > limit * 1.4 + 64 or (data.startswith(_SIGNATURES) and len(data) > limit):
        raise InvalidInput(f"The image has {len(data)} bytes; at most {limit} are allowed.")
    if data.startswith(_SIGNATURES):
        return data
    if data[:5].lower() == b"data:":
        raise InvalidInput("The image is a data: URL; send the base64 text after its comma.")
    try:
        decoded = base64.b64decode(b"".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        decoded = data
    if not decoded:
        raise InvalidInput("The image is empty: it has no bytes.")
    if len(decoded) > limit:
        raise InvalidInput(f"The image has {len(decoded)} bytes; at most {limit} are allowed.")
    return decoded


def _open(data: bytes, settings: Settings) -> Image.Image:
    """Read the header: the format and the size, before anything is decoded."""
    for signature, name in _NAMED:
        if data[:256].lstrip().lower().startswith(signature.lower()):
            raise InvalidInput(f"The image is {name}; {_ACCEPTED} are read.")
    # Pillow's own limit would raise inside open(); ours has a sentence.
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidInput(f"The bytes are not an image that can be read; {_ACCEPTED} are.") from None
    except Exception:
        raise InvalidInput("The image's header is damaged.") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidInput("The image has no pixels.")
    if width * height > settings.max_pixels:
        raise InvalidInput(
            f"The image declares {width} x {height} pixels; at most {settings.max_pixels} in all are allowed."
        )
    if max(width, height) > settings.max_aspect * min(width, height):
        raise InvalidInput(
            f"The image has {width} x {height} pixels; a side may be at most {settings.max_aspect} times the other."
        )
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """To RGB: samples of any depth to 8 bits, transparency on white."""
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N", "F"):
        image = _eight_bits(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        image = page
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floating point to 8 bits by scale; Pillow's own conversion would clip it.

    Integers are taken as 16-bit samples. Floats are taken as 0 to 1 where they are, else as 0 to their largest.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = max(1.0, float(values.max(initial=0.0))) if image.mode == "F" else 65535.0
    return Image.fromarray(np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8))
