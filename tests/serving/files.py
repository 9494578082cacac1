"""Builders of image files that no image library writes: odd ones to read, hostile ones to refuse."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

from PIL import Image

SHORT, LONG = 3, 4


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # Pillow leaves settings of one save on the image
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of raw rows (each with its filter byte); extra chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk, after its header."""
    return data[:33] + chunk(kind, content) + data[33:]


def png_header(width: int, height: int) -> bytes:
    """A small PNG that declares any size."""
    return png(width, height, 8, 2, b"\0" * 900)


def tiff(tags: Iterable[tuple[int, int, int, int]], body: bytes, order: str = "<") -> bytes:
    """A TIFF of (tag, type, count, value or offset), its body from offset 8, its directory at the end."""
    entries = b""
    tags = sorted(tags)
    for tag, kind, count, value in tags:
        short = kind == SHORT and count == 1
        entries += struct.pack(order + ("HHIHH" if short else "HHII"), tag, kind, count, value, *[0] * short)
    body += b"\0" * (len(body) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(body))
    return head + body + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0"


def grey_tiff(
    width: int, height: int, body: bytes, *extra: tuple[int, int, int, int], order: str = "<", **changes: int
) -> bytes:
    """A TIFF of one grey strip; changes: bits, photometric, compression, format."""
    tags = {
        256: (LONG, 1, width),
        257: (LONG, 1, height),
        258: (SHORT, 1, changes.get("bits", 8)),
        259: (SHORT, 1, changes.get("compression", 1)),
        262: (SHORT, 1, changes.get("photometric", 1)),
        273: (LONG, 1, 8),
        277: (SHORT, 1, 1),
        278: (LONG, 1, height),
        279: (LONG, 1, len(body)),
        339: (SHORT, 1, changes.get("format", 1)),
    } | {tag: tuple(rest) for tag, *rest in extra}
    return tiff([(tag, *rest) for tag, rest in tags.items()], body, order)


def many_strips() -> bytes:
    """4 MB that list a million strips: each cost Pillow an object and a seek, 20 MB of them a minute."""
    count = 1_000_000
    return grey_tiff(8, 1000, bytes(4 * count), (273, LONG, count, 8), (278, LONG, 1, 1))


def huge_tile() -> bytes:
    """A TIFF of 64 x 64 whose one tile has 20,000 x 20,000 pixels: 0.4 MB of zeros unpack to 400 MB."""
    side, body = 20_000, zlib.compress(bytes(2**20))
    tile = (322, LONG, 1, side), (323, LONG, 1, side), (324, LONG, 1, 8), (325, LONG, 1, len(body))
    return grey_tiff(64, 64, body, *tile, compression=8)


def many_scans() -> bytes:
    """A progressive JPEG with 1,000 scans, each of which visits every pixel again, however few bytes it has."""
    data = encode(Image.new("L", (800, 800), 255), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 1000 + b"\xff\xd9"


def run_length_bmp() -> bytes:
    """A BMP coded in runs, which Pillow reads in a Python loop."""
    palette = b"".join(bytes((n, 0, n, 0)) for n in range(256))
    runs = b"\x08\x01" * 8
    sizes = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(runs), 0, 0, 256, 0)
    place = 14 + len(sizes) + len(palette)
    return b"BM" + struct.pack("<IHHI", place + len(runs), 0, 0, place) + sizes + palette + runs
