"""Reduces an image file to what its pixels need, so that nothing else in it reaches a parser or fills memory.

Text, profiles, thumbnails, comments and private tags are where small files grow large or slow: a 20 MB TIFF
may list 4 million strips, a 0.5 MB JPEG 1,000 scans, and either keeps a decoder busy for minutes. Here the
outer structure is walked once, in time linear in the file, and checked for its end, so that a truncated file
is told from a whole one.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from rtprune.errors import InvalidInput

MAX_PIECES = 2**17  # chunks, segments, blocks or values: 10 times what a 20 MB file of a usual writer has
MAX_SCANS = 100  # of a progressive JPEG: usual writers make 10, and every scan visits all of the image


class Reduced(NamedTuple):
    """A file's essential bytes and its EXIF orientation (1 to 8; 1 = upright)."""

    data: bytes
    orientation: int


def reduce(kind: str, data: bytes) -> Reduced:
    """The file without what its pixels do not need.

    Args:
        kind: PNG, JPEG, WEBP, TIFF, GIF or BMP, as the file's signature says.
        data: the file.

    Raises:
        InvalidInput: the structure is broken or ends early, or it has more pieces than any page needs.
    """
    try:
        match kind:
            case "PNG":
                return _png(data)
            case "JPEG":
                return _jpeg(data)
            case "TIFF":
                return _tiff(data)
            case "GIF":
                return _gif(data)
            case "WEBP":
                return Reduced(data, _webp_orientation(data))
        return Reduced(data, 1)
    except (struct.error, IndexError):  # the file ends inside one of its pieces
        raise damaged(kind) from None


def damaged(kind: str) -> InvalidInput:
    """The error for a file that breaks its own format; the caller raises it."""
    return InvalidInput(f"The image is a damaged or incomplete {kind} file.")


def _too_many(kind: str, pieces: str) -> InvalidInput:
    return InvalidInput(f"The {kind} image has too many {pieces}; save it anew with a usual program.")


# PNG: signature, then chunks of length, type, data, CRC-32 (PNG specification, third edition, section 5)

_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def _png(data: bytes) -> Reduced:
    """Keep what makes the still image: no text, profiles or animation; check every kept chunk's CRC."""
    kept, orientation, at = [data[:8]], 1, 8
    for _ in range(MAX_PIECES):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise damaged("PNG")
        if name in _PNG_KEPT:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise damaged("PNG")
            kept.append(data[at:end])
        elif name == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        elif not name[0] & 0x20:  # critical, so a reader that does not know it must not go on
            raise damaged("PNG")
        if name == b"IEND":
            return Reduced(b"".join(kept), orientation)
        at = end
    raise _too_many("PNG", "chunks")


# JPEG: markers, segments with a length, and entropy-coded data after each SOS (ITU-T T.81, annex B)

_SOI_AND_MORE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers with no segment
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JFIF, _EXIF, _ADOBE, _SOS, _EOI = 0xE0, 0xE1, 0xEE, 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed zero, not a restart, not filling
# libjpeg invents grey where a scan ends at a marker too early, but stops where the bytes just end. It reads
# ahead by up to 8 bytes, so that many must follow the last scan: one bits, which are no code's beginning.
_READ_AHEAD = b"\xff\0" * 8


def _jpeg(data: bytes) -> Reduced:
    """Keep the first image's coding; check that the end marker is there and that no scan is missing."""
    kept, orientation, seen = [data[:2]], 1, set()
    components, scans, at = 0, [], 2
    sequential = progressive = False
    for _ in range(MAX_PIECES):
        start = at
        while data[at] != 0xFF:
            at += 1  # bytes between segments are skipped by every reader
        while data[at] == 0xFF:
            at += 1
        marker, at = data[at], at + 1
        if at - start > 2**16:
            raise damaged("JPEG")
        if marker == _EOI:
            break
        if marker in _SOI_AND_MORE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        segment, at = data[at + 2 : at + length], at + length
        if length < 2 or at > len(data):
            raise damaged("JPEG")
        if marker == _EXIF and segment.startswith(b"Exif\0\0") and orientation == 1:
            orientation = _orientation(segment[6:])
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            if marker not in (_JFIF, _ADOBE) or marker in seen:
                continue
            seen.add(marker)
        kept.append(b"\xff" + bytes([marker]) + length.to_bytes(2, "big") + segment)
        if marker in _SOF:
            components = segment[5]
            sequential, progressive = marker in (0xC0, 0xC1), marker == 0xC2
        if marker == _SOS:
            scans.append(segment)
            if len(scans) > MAX_SCANS:
                raise _too_many("JPEG", "scans")
            following = _NEXT_MARKER.search(data, at)
            if following is None:
                raise damaged("JPEG")
            kept.append(data[at : following.start()])
            at = following.start()
    else:
        raise _too_many("JPEG", "segments")
    if not scans or (progressive and not _every_coefficient(scans, components)):
        raise damaged("JPEG")
    one_scan = sequential and len(scans) == 1 and scans[0][0] == components
    kept.append(_READ_AHEAD if one_scan else b"\xff\xd9")
    return Reduced(b"".join(kept), orientation)


def _every_coefficient(scans: list[bytes], components: int) -> bool:
    """Whether a progressive file's scans bring every coefficient of every component to full precision."""
    wanted: dict[int, set[int]] = {}
    for scan in scans:
        count = scan[0]
        first, last, approximation = (scan[2 * count + n] for n in (1, 2, 3))
        for component in scan[1 : 1 + 2 * count : 2]:
            missing = wanted.setdefault(component, set(range(64)))
            if not approximation & 15:
                missing.difference_update(range(first, last + 1))
    return len(wanted) == components and not any(wanted.values())


# GIF: header, screen, blocks (GIF89a specification)


def _gif(data: bytes) -> Reduced:
    """Keep the first frame and its graphic control; drop comments and application data before it."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept, control = data[:at], b""
    for _ in range(MAX_PIECES):
        match data[at]:
            case 0x2C:  # an image
                return Reduced(b"".join((kept, control, data[at:])), 1)
            case 0x21:
                start, label, at = at, data[at + 1], at + 2
                at = _after_blocks(data, at)
                if label == 0xF9:
                    control = data[start:at]
            case _:
                raise damaged("GIF")
    raise _too_many("GIF", "blocks")


def _after_blocks(data: bytes, at: int) -> int:
    for _ in range(MAX_PIECES):
        at += data[at] + 1
        if not data[at]:
            return at + 1
    raise _too_many("GIF", "blocks")


# TIFF, and EXIF, which is TIFF without pixels (TIFF 6.0, section 2; BigTIFF by its 43 in place of 42)

_SHORT = 3
_UNITS = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), strict=True))  # bytes
_ORIENTATION = 274
# Size, samples, compression, photometric interpretation, strips and tiles, palette, YCbCr, JPEG tables
_SIZE_AND_SAMPLES = (256, 257, 258, 259, 262, 266, 277, 284, 292, 293, 317, 338, 339)
_TIFF_KEPT = frozenset((*_SIZE_AND_SAMPLES, 273, 278, 279, 320, 322, 323, 324, 325, 347, 529, 530, 531, 532))


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    raw: bytes  # as it stands in the directory: 12 bytes, in BigTIFF 20

    def short(self, order: str) -> int:
        """The value of an entry of one SHORT, else 0."""
        if (self.kind, self.values) != (_SHORT, 1):
            return 0
        return int(struct.unpack_from(order + "H", self.raw, 12 if len(self.raw) == 20 else 8)[0])


class _Directory(NamedTuple):
    """The first directory of a TIFF file: its byte order for `struct`, its place and its entries."""

    order: str
    big: bool
    start: int
    end: int
    entries: list[_Entry]

    @classmethod
    def of(cls, data: bytes) -> _Directory:
        order = "<" if data[:2] == b"II" else ">"
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        (start,) = (
            struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
        )
        if start > len(data):
            raise damaged("TIFF")
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        first, size = (start + 8, 20) if big else (start + 2, 12)
        end = first + size * count + (8 if big else 4)
        if end > len(data):
            raise damaged("TIFF")
        if count > 2**16:
            raise _too_many("TIFF", "tags")
        raws = [data[first + size * n : first + size * (n + 1)] for n in range(count)]
        head = struct.Struct(order + ("HHQ" if big else "HHI"))
        return cls(order, big, start, end, [_Entry._make((*head.unpack_from(raw), raw)) for raw in raws])


def _tiff(data: bytes) -> Reduced:
    """Keep the tags that make the first page, in the place of its directory, and no further page."""
    directory = _Directory.of(data)
    kept: dict[int, _Entry] = {}
    orientation = values = 0
    for entry in directory.entries:
        if entry.tag == _ORIENTATION:
            orientation = orientation or entry.short(directory.order)
        if entry.tag not in _TIFF_KEPT or entry.tag in kept or not _UNITS.get(entry.kind):
            continue
        kept[entry.tag] = entry
        values += entry.values
        if entry.values * _UNITS[entry.kind] > len(data):
            raise damaged("TIFF")
        if values > MAX_PIECES:
            raise _too_many("TIFF", "strips or tiles")
    head = struct.pack(directory.order + ("Q" if directory.big else "H"), len(kept))
    parts = [data[: directory.start], head, *(kept[tag].raw for tag in sorted(kept))]
    free = directory.end - sum(map(len, parts))  # at least the pointer to a next page, now nil
    return Reduced(b"".join((*parts, bytes(free), data[directory.end :])), _valid(orientation))


def _orientation(exif: bytes) -> int:
    """EXIF's orientation; 1 where there is none or the block is damaged, which is no reason not to read a page."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    try:
        directory = _Directory.of(exif)
    except (struct.error, InvalidInput):
        return 1
    found = (entry.short(directory.order) for entry in directory.entries if entry.tag == _ORIENTATION)
    return _valid(next(found, 1))


def _valid(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


# WebP: RIFF chunks of name, length, data, even padding (RFC 9649)


def _webp_orientation(data: bytes) -> int:
    at = 12
    for _ in range(MAX_PIECES):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1
