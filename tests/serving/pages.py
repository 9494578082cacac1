"""The corpus of images that must be refused or read in a certain way, shared by unit tests and server tests."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from tests.serving import files
from tests.serving.files import encode, png_header

__all__ = ["BAD_IMAGES", "BadImage", "encode", "noise", "picture", "png_header", "upright_cases"]


@dataclass(frozen=True)
class BadImage:
    """Bytes that must be refused, and a part of the sentence that says why."""

    name: str
    data: bytes
    sentence: str


def picture(width: int = 320, height: int = 240) -> Image.Image:
    """A white page with a black bar in its upper left quarter."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((10, 10, width // 2 - 10, height // 2 - 10), fill="black")
    return image


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8))


def _half(kind: str, **options: object) -> bytes:
    data = encode(noise(), kind, **options)
    return data[: len(data) // 2]


def _wrong_crc() -> bytes:
    data = bytearray(encode(noise()))
    data[data.index(b"IDAT") + 5000] ^= 1
    return bytes(data)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
NOT_AN_IMAGE = "not an image that can be read"
INCOMPLETE = "a damaged or incomplete {} file"

BAD_IMAGES = [
    BadImage("no bytes", b"", "empty"),
    BadImage("white space", b" \n", "empty"),
    BadImage("not an image", b"This is a letter, not a picture of one.", NOT_AN_IMAGE),
    BadImage("random bytes", bytes(range(256)) * 8, NOT_AN_IMAGE),
    BadImage("base64 of a letter", base64.b64encode(b"This is a letter."), NOT_AN_IMAGE),
    BadImage("truncated PNG", _half("PNG"), INCOMPLETE.format("PNG")),
    BadImage("truncated JPEG", _half("JPEG"), INCOMPLETE.format("JPEG")),
    BadImage("truncated JPEG, closed", _half("JPEG") + b"\xff\xd9", INCOMPLETE.format("JPEG")),
    BadImage("truncated JPEG in base64", base64.b64encode(_half("JPEG")), INCOMPLETE.format("JPEG")),
    BadImage("truncated progressive JPEG", _half("JPEG", progressive=True), INCOMPLETE.format("JPEG")),
    BadImage(
        "progressive JPEG without its last scans",
        _half("JPEG", progressive=True) + b"\xff\xd9",
        INCOMPLETE.format("JPEG"),
    ),
    BadImage("truncated WebP", _half("WEBP"), INCOMPLETE.format("WEBP")),
    BadImage("truncated GIF", _half("GIF"), INCOMPLETE.format("GIF")),
    BadImage("truncated BMP", _half("BMP"), INCOMPLETE.format("BMP")),
    BadImage("truncated TIFF", _half("TIFF", compression="tiff_lzw"), INCOMPLETE.format("TIFF")),
    BadImage("PNG signature alone", b"\x89PNG\r\n\x1a\n", INCOMPLETE.format("PNG")),
    BadImage("PNG without data", encode(picture()).replace(b"IDAT", b"IDAX", 1), INCOMPLETE.format("PNG")),
    BadImage("PNG with a wrong checksum", _wrong_crc(), INCOMPLETE.format("PNG")),
    BadImage("huge size declared", png_header(30_000, 30_000), "declares 30000 x 30000 pixels"),
    BadImage("no size declared", png_header(0, 0), INCOMPLETE.format("PNG")),
    BadImage("too thin", encode(Image.new("RGB", (1, 20_000))), "a side may be at most 200 times the other"),
    BadImage("JPEG with 1,000 scans", files.many_scans(), "too many scans"),
    BadImage("TIFF with a million strips", files.many_strips(), "too many strips"),
    BadImage("TIFF with a huge tile", files.huge_tile(), "tiles of 20000 x 20000 pixels"),
    BadImage("TIFF with 24 bits", files.grey_tiff(8, 8, b"\xff" * 192, bits=24), "24 bits, unsigned"),
    BadImage("TIFF of complex numbers", files.grey_tiff(8, 8, b"\xff" * 512, bits=64, format=6), "complex"),
    BadImage(
        "TIFF with a predictor over 32 bits",
        files.grey_tiff(8, 8, b"\xff" * 256, (317, files.SHORT, 1, 2), bits=32),
        "32-bit unsigned samples are stored in a way",
    ),
    BadImage("TIFF in LAB", encode(picture().convert("LAB"), "TIFF"), "colour space, LAB"),
    BadImage("LZMA TIFF", encode(picture(), "TIFF", compression="lzma"), "compression is not read"),
    BadImage("run-length BMP", files.run_length_bmp(), "run-length"),
    BadImage("SVG", SVG, "SVG"),
    BadImage("SVG with a prolog", b'\xef\xbb\xbf<?xml version="1.0"?>' + SVG, "SVG"),
    BadImage("EPS", EPS, "PostScript"),
    BadImage("EPS with a preview", struct.pack("<7I", 0xC6D3D0C5, 30, 9, 0, 0, 0, 0) + EPS, "EPS"),
    BadImage("PDF", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "PDF"),
    BadImage("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    BadImage("data URL without base64", b"data:image/svg+xml," + SVG, "data: URL without base64"),
    BadImage("data URL with broken base64", b"data:image/png;base64,AAA", "base64 text is broken"),
    BadImage("WMF", b"\xd7\xcd\xc6\x9a" + bytes(60), NOT_AN_IMAGE),
]


def _tagged(image: Image.Image, orientation: int, kind: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif, **options)


@lru_cache(maxsize=1)
def upright_cases() -> dict[str, bytes]:
    """Encodings of `picture()` in other forms; each must be read as the same upright picture."""
    plain = picture()
    turned = plain.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back by 270 degrees
    grey = np.asarray(plain.convert("L"))
    wide = grey.astype(np.uint16) * 257
    second = Image.new("RGB", plain.size, "red")
    clear = Image.new("RGBA", plain.size, (255, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (10, 10, 151, 111))
    palette = plain.convert("P")
    see_through = Image.fromarray((grey > 0).astype(np.uint8), "P")
    see_through.putpalette((0, 0, 0, 255, 0, 0))
    rows_rgb16 = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in wide)
    rows_key = b"".join(b"\0" + np.where(row, 7, 0).astype(np.uint8).tobytes() for row in grey)
    jpeg = encode(plain, "JPEG", quality=95)
    large = b"icc\0\0" + zlib.compress(os.urandom(2**21))
    return {
        "PNG": encode(plain),
        "PNG with a large profile": files.with_chunk(encode(plain), b"iCCP", large),
        "PNG with a text bomb": files.with_chunk(
            encode(plain), b"zTXt", b"a\0\0" + zlib.compress(bytes(2**25))
        ),
        "PNG, EXIF-rotated": _tagged(turned, 6, "PNG"),
        "PNG, animated": encode(plain, save_all=True, append_images=[second.copy()]),
        "JPEG": jpeg,
        "JPEG, progressive": encode(plain, "JPEG", quality=95, progressive=True),
        "JPEG with restarts": encode(plain, "JPEG", quality=95, restart_marker_rows=1),
        "JPEG and bytes after it": jpeg + b"anything",
        "JPEG, second picture in it": encode(
            picture(), "MPO", quality=95, save_all=True, append_images=[second.copy()]
        ),
        "WebP": encode(plain, "WEBP", lossless=True),
        "WebP, lossy": encode(plain, "WEBP", quality=95),
        "WebP, EXIF-rotated": _tagged(turned, 6, "WEBP", lossless=True),
        "WebP, animated": encode(plain, "WEBP", lossless=True, save_all=True, append_images=[second.copy()]),
        "BMP": encode(plain, "BMP"),
        "TIFF LZW": encode(plain, "TIFF", compression="tiff_lzw"),
        "TIFF, rotated": _tagged(turned, 6, "TIFF", compression="tiff_lzw"),
        "TIFF, JPEG": encode(plain, "TIFF", compression="jpeg", quality=95),
        "TIFF, big": encode(plain, "TIFF", big_tiff=True),
        "TIFF, 16 bits, big end first": files.grey_tiff(
            320, 240, wide.astype(">u2").tobytes(), bits=16, order=">"
        ),
        "TIFF, 16 bits, white is zero": files.grey_tiff(
            320, 240, (65535 - wide).astype("<u2").tobytes(), bits=16, photometric=0
        ),
        "CMYK JPEG": encode(plain.convert("CMYK"), "JPEG", quality=95),
        "CMYK TIFF": encode(plain.convert("CMYK"), "TIFF"),
        "16-bit grey PNG": encode(Image.fromarray(wide)),
        "16-bit RGB PNG": files.png(320, 240, 16, 2, rows_rgb16),
        "16-bit grey TIFF": encode(Image.fromarray(wide), "TIFF"),
        "float TIFF": encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "grey": encode(plain.convert("L")),
        "bilevel": encode(plain.convert("1"), "TIFF", compression="group4"),
        "bilevel PNG": encode(plain.convert("1")),
        "palette": encode(palette),
        "palette GIF": encode(palette, "GIF"),
        "palette with transparency": encode(see_through, transparency=1),
        "grey with a transparent value": files.png(320, 240, 8, 0, rows_key, files.chunk(b"tRNS", b"\0\7")),
        "alpha": encode(clear),
        "alpha TIFF": encode(clear, "TIFF"),
        "alpha WebP": encode(clear, "WEBP", lossless=True),
        "grey with alpha": encode(clear.convert("LA")),
        "EXIF-rotated": _tagged(turned, 6, "JPEG", quality=95),
        "animated GIF": encode(plain, "GIF", save_all=True, append_images=[second.copy()]),
        "GIF with transparency": encode(see_through, "GIF", transparency=1),
        "multi-page TIFF": encode(plain, "TIFF", save_all=True, append_images=[second.copy()]),
    }
