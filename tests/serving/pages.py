"""The corpus of images that must be refused or read in a certain way, shared by unit tests and server tests."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw


@dataclass(frozen=True)
class BadImage:
    """Bytes that must be refused, and a part of the sentence that says why."""

    name: str
    data: bytes
    sentence: str


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 320, height: int = 240) -> Image.Image:
    """A white page with a black bar in its upper left quarter."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((10, 10, width // 2 - 10, height // 2 - 10), fill="black")
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A small PNG that declares any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 900))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8))


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"

BAD_IMAGES = [
    BadImage("no bytes", b"", "empty"),
    BadImage("not an image", b"This is a letter, not a picture of one.", "not an image that can be read"),
    BadImage("random bytes", bytes(range(256)) * 8, "not an image that can be read"),
    BadImage("truncated PNG", encode(noise())[:20_000], "damaged"),
    BadImage("truncated JPEG", encode(noise(), "JPEG")[:5_000], "damaged"),
    BadImage("PNG signature alone", b"\x89PNG\r\n\x1a\n", "not an image that can be read"),
    BadImage("huge size declared", png_header(30_000, 30_000), "declares 30000 x 30000 pixels"),
    BadImage("too thin", encode(Image.new("RGB", (1, 20_000))), "a side may be at most 200 times the other"),
    BadImage("SVG", SVG, "SVG"),
    BadImage("SVG with a prolog", b'<?xml version="1.0"?>' + SVG, "SVG"),
    BadImage("EPS", EPS, "PostScript"),
    BadImage("PDF", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "PDF"),
    BadImage("data URL", b"data:image/png;base64,AAAA", "data: URL"),
    BadImage(
        "PNG without data", encode(picture()).replace(b"IDAT", b"IDAX", 1), "not an image that can be read"
    ),
]


def upright_cases() -> dict[str, bytes]:
    """Encodings of `picture()` in other forms; each must be read as the same upright picture."""
    plain = picture()
    grey = np.asarray(plain.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    second = Image.new("RGB", plain.size, "red")
    clear = Image.new("RGBA", plain.size, (255, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (10, 10, 151, 111))
    palette = plain.convert("P")
    return {
        "PNG": encode(plain),
        "JPEG": encode(plain, "JPEG", quality=95),
        "WebP": encode(plain, "WEBP", lossless=True),
        "BMP": encode(plain, "BMP"),
        "TIFF LZW": encode(plain, "TIFF", compression="tiff_lzw"),
        "CMYK JPEG": encode(plain.convert("CMYK"), "JPEG", quality=95),
        "CMYK TIFF": encode(plain.convert("CMYK"), "TIFF"),
        "16-bit grey PNG": encode(Image.fromarray(grey.astype(np.uint16) * 257)),
        "16-bit grey TIFF": encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
        "float TIFF": encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "grey": encode(plain.convert("L")),
        "bilevel": encode(plain.convert("1"), "TIFF", compression="group4"),
        "palette": encode(palette),
        "palette GIF": encode(palette, "GIF"),
        "alpha": encode(clear),
        "grey with alpha": encode(clear.convert("LA")),
        "EXIF-rotated": encode(plain.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif),
        "animated GIF": encode(plain, "GIF", save_all=True, append_images=[second]),
        "multi-page TIFF": encode(plain, "TIFF", save_all=True, append_images=[second]),
    }
