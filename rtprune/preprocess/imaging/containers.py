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

from .errors import ImageError

MAX_PIECES = 2**17  # chunks, segments, blocks or values: 10 times what a 20 MB file of a usual writer has
MAX_PAGES = 10_000  # of a TIFF file
MAX_TEXT = 2**20  # bytes of XMP or of a PNG's text that are searched for an orientation
MAX_SCANS = 100  # of a progressive JPEG: usual writers make 10, and every scan visits all of the image


class Samples(NamedTuple):
    """How to read the samples of a TIFF file that Pillow has no mode for: `Reduced.data` has their single bytes.

    Attributes:
        dtype: NumPy's, with the file's byte order.
        channels: samples of a pixel; a row of the reduced picture has width * channels * itemsize pixels of one byte.
        inverted: whether 0 is white.
    """

    dtype: str
    channels: int
    inverted: bool


class Reduced(NamedTuple):
    """A file's essential bytes, its orientation (1 to 8; 1 = upright) and, for some TIFF files, its samples."""

    data: bytes
    orientation: int
    samples: Samples | None = None


def reduce(kind: str, data: bytes, page: int = 0) -> Reduced:
    """The file without what its pixels do not need.

    The orientation is the first that is there of: the format's own (TIFF's tag, PNG's eXIf, JPEG's and WebP's EXIF), an
    EXIF block in a PNG's text, XMP. An EXIF block or XMP that can't be read is as none.

    Args:
        kind: PNG, JPEG, WEBP, TIFF, GIF or BMP, as the file's signature says.
        data: the file.
        page: of `pages`, for a TIFF.

    Raises:
        ImageError: the structure is broken or ends early, or it has more pieces than any page needs.
    """
    try:
        match kind:
            case "PNG":
                return _png(data)
            case "JPEG":
                return _jpeg(data)
            case "TIFF":
                return _tiff(data, page)
            case "GIF":
                return _gif(data)
            case "WEBP":
                return Reduced(data, _webp_orientation(data))
        return Reduced(data, 1)
    except (struct.error, IndexError):  # the file ends inside one of its pieces
        raise damaged(kind) from None


def damaged(kind: str) -> ImageError:
    """The error for a file that breaks its own format; the caller raises it."""
    return ImageError(f"The image is a damaged or incomplete {kind} file.")


def _too_many(kind: str, pieces: str) -> ImageError:
    return ImageError(f"The {kind} image has too many {pieces}; save it anew with a usual program.")


# PNG: signature, then chunks of length, type, data, CRC-32 (PNG specification, third edition, section 5)

_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


def _png(data: bytes) -> Reduced:
    """Keep what makes the still image: no text, profiles or animation; check every kept chunk's CRC."""
    kept, found, at = [data[:8]], _Orientations(), 8
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
            found.own = found.own or _exif_orientation(data[at + 8 : end - 4])
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            found.add_text(name, data[at + 8 : min(end - 4, at + 8 + MAX_TEXT)])
        elif not name[0] & 0x20:  # critical, so a reader that does not know it must not go on
            raise damaged("PNG")
        if name == b"IEND":
            return Reduced(b"".join(kept), found.first())
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
    kept, found, seen = [data[:2]], _Orientations(), set()
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
        if marker == _EXIF and segment.startswith(b"Exif\0\0"):
            found.own = found.own or _exif_orientation(segment[6:])
        if marker == _EXIF and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            found.xmp = found.xmp or _xmp_orientation(segment)
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
    return Reduced(b"".join(kept), found.first())


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

_SHORT, _LONG = 3, 4
_UNITS = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), strict=True))  # bytes
_NEW_SUBFILE, _SUBFILE, _WIDTH, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = (
    254,
    255,
    256,
    258,
    262,
    274,
    277,
)
_PLANES, _PREDICTOR, _TILE_WIDTH, _EXTRA, _FORMAT, _XMP = 284, 317, 322, 338, 339, 700
# Size, samples, compression, photometric interpretation, strips and tiles, palette, YCbCr, JPEG tables
_SIZE_AND_SAMPLES = (256, 257, 258, 259, 262, 266, 277, 284, 292, 293, 317, 338, 339)
_TIFF_KEPT = frozenset((*_SIZE_AND_SAMPLES, 273, 278, 279, 320, 322, 323, 324, 325, 347, 529, 530, 531, 532))


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    raw: bytes  # as it stands in the directory: 12 bytes, in BigTIFF 20

    def numbers(self, order: str, data: bytes) -> tuple[int, ...]:
        """The values of an entry of up to 64 SHORTs or LONGs, else none."""
        form = {_SHORT: "H", _LONG: "I"}.get(self.kind)
        if form is None or not 0 < self.values <= 64:
            return ()
        big, size = len(self.raw) == 20, self.values * _UNITS[self.kind]
        place = 12 if big else 8
        if size <= len(self.raw) - place:
            return struct.unpack_from(f"{order}{self.values}{form}", self.raw, place)
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), self.raw, place)
        return struct.unpack_from(f"{order}{self.values}{form}", data, start)

    def rewritten(self, order: str, value: int) -> _Entry:
        """The entry with one LONG in its place."""
        head, pad = ("HHQ", 8) if len(self.raw) == 20 else ("HHI", 4)
        body = struct.pack(order + "I", value).ljust(pad, b"\0")
        return self._replace(kind=_LONG, values=1, raw=struct.pack(order + head, self.tag, _LONG, 1) + body)


class _Directory(NamedTuple):
    """A directory of a TIFF file: byte order for `struct`, its place, its entries, where the next one is (0: none)."""

    order: str
    big: bool
    start: int
    end: int
    entries: list[_Entry]
    next: int

    @classmethod
    def of(cls, data: bytes, start: int = 0) -> _Directory:
        """The one at `start`; the file's first where that is 0."""
        order = "<" if data[:2] == b"II" else ">"
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        if not start:
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
        (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, end - (8 if big else 4))
        entries = [_Entry._make((*head.unpack_from(raw), raw)) for raw in raws]
        return cls(order, big, start, end, entries, following)

    def number(self, tag: int, data: bytes, default: int) -> int:
        """The first value of the first entry with this tag."""
        found = (entry.numbers(self.order, data) for entry in self.entries if entry.tag == tag)
        return next(iter(next(found, ())), default)


def pages(data: bytes) -> tuple[int, ...]:
    """Where the pages of a TIFF file begin: its directories without previews and masks, or the first of all.

    Where the chain of directories breaks off, the place that it leads to is the last page; decoding that one fails.

    Raises:
        ImageError: the first directory is broken, or there are too many.
    """
    whole: dict[int, bool] = {}
    following = 0
    while len(whole) < MAX_PAGES:
        try:
            directory = _Directory.of(data, following)
            reduced = directory.number(_NEW_SUBFILE, data, 0) & 5 or directory.number(_SUBFILE, data, 1) == 2
        except (struct.error, ImageError):
            if not whole:
                raise damaged("TIFF") from None
            return (*(start for start in whole if whole[start]), following)
        if directory.start not in whole:  # a chain that leads back has ended
            whole[directory.start] = not reduced
            following = directory.next
        if not following or following in whole:
            return tuple(start for start in whole if whole[start]) or tuple(whole)[:1]
    raise _too_many("TIFF", "pages")


def _tiff(data: bytes, page: int) -> Reduced:
    """Keep the tags that make one page, in the place of its directory, and no other page."""
    directory = _Directory.of(data, pages(data)[page])
    order, kept, values = directory.order, {}, 0
    found = _Orientations()
    found.own = _valid(directory.number(_ORIENTATION, data, 0))
    for entry in directory.entries:
        if entry.tag == _XMP and entry.kind in (1, 7) and entry.values <= MAX_TEXT:
            (at,) = struct.unpack_from(
                order + ("Q" if directory.big else "I"), entry.raw, 12 if directory.big else 8
            )
            found.xmp = found.xmp or _xmp_orientation(data[at : at + entry.values])
        if entry.tag not in _TIFF_KEPT or entry.tag in kept or not _UNITS.get(entry.kind):
            continue
        kept[entry.tag] = entry
        values += entry.values
        if entry.values * _UNITS[entry.kind] > len(data):
            raise damaged("TIFF")
        if values > MAX_PIECES:
            raise _too_many("TIFF", "strips or tiles")
    samples = _wide_samples(directory, kept, data)
    head = struct.pack(order + ("Q" if directory.big else "H"), len(kept))
    first = struct.pack(
        order + "HHHQ" if directory.big else order + "HI",
        *((43, 8, 0) if directory.big else (42,)),
        directory.start,
    )
    parts = [
        data[:2],
        first,
        data[2 + len(first) : directory.start],
        head,
        *(kept[tag].raw for tag in sorted(kept)),
    ]
    free = directory.end - sum(map(len, parts))  # at least the pointer to a next page, now nil
    return Reduced(b"".join((*parts, bytes(free), data[directory.end :])), found.first(), samples)


def _wide_samples(directory: _Directory, kept: dict[int, _Entry], data: bytes) -> Samples | None:
    """Have signed, floating-point and 32-bit samples read as single bytes; None for what Pillow reads itself.

    Pillow's own modes for these depend on byte order and compression, and some come out as noise.

    Raises:
        ImageError: samples of another kind, naming it, or laid out in a way that isn't read.
    """
    every = {}
    for tag, default in ((_BITS, 1), (_FORMAT, 1)):
        numbers = kept[tag].numbers(directory.order, data) if tag in kept else (default,)
        if len(set(numbers)) > 1:
            raise ImageError(
                "The TIFF image has channels of different depths; save it anew with 8 bits each."
            )
        every[tag] = (*numbers, default)[0]
    bits, kind = every[_BITS], every[_FORMAT]
    letter = {1: "u", 2: "i", 3: "f", 4: "u"}.get(kind)
    photometric = directory.number(_PHOTOMETRIC, data, 1)
    inverted = (directory.order, bits, photometric) == (">", 16, 0)  # Pillow doesn't know these
    if letter == "u" and bits in (1, 2, 4, 8, 12, 16) and not inverted:
        return None
    names = {"u": "unsigned", "i": "signed", "f": "floating-point"}
    if letter is None or bits not in ((16, 32, 64) if letter == "f" else (8, 16, 32, 64)):
        raise ImageError(
            f"The TIFF image's samples ({bits} bits, {names.get(letter or '', 'complex')}) are not read; "
            "save it with 8 or 16 bits."
        )
    count = directory.number(_SAMPLES, data, 1)
    if directory.number(_PREDICTOR, data, 1) != 1 or (count > 1 and directory.number(_PLANES, data, 1) != 1):
        raise ImageError(
            f"The TIFF image's {bits}-bit {names[letter]} samples are stored in a way that is not read; "
            "save it with 8 or 16 bits."
        )
    if (photometric not in (0, 1) or count > 2) and (photometric != 2 or not 3 <= count <= 4):
        raise ImageError("The TIFF image's colours are not read; save it as RGB.")
    for tag in (_WIDTH, _TILE_WIDTH):
        if tag in kept:
            width = directory.number(tag, data, 0) * count * (bits // 8)
            if width >= 2**31:
                raise damaged("TIFF")
            kept[tag] = kept[tag].rewritten(directory.order, width)
    for tag, value in ((_BITS, 8), (_FORMAT, 1), (_SAMPLES, 1), (_PHOTOMETRIC, 1)):
        if tag in kept:
            kept[tag] = kept[tag].rewritten(directory.order, value)
    kept.pop(_EXTRA, None)
    return Samples(f"{directory.order}{letter}{bits // 8}", count, photometric == 0)


# Orientation


class _Orientations:
    """What a file says of its orientation: 0 where it says nothing; the first of these counts."""

    def __init__(self) -> None:
        self.own = self.text = self.xmp = 0

    def first(self) -> int:
        """1 to 8."""
        return self.own or self.text or self.xmp or 1

    def add_text(self, kind: bytes, body: bytes) -> None:
        """A text chunk of a PNG: older programs keep EXIF there, in hexadecimal."""
        keyword, _, rest = body.partition(b"\0")
        if keyword == b"XML:com.adobe.xmp" and kind == b"iTXt" and rest[:1] == b"\0":
            self.xmp = self.xmp or _xmp_orientation(rest)
        if keyword in (b"Raw profile type exif", b"Raw profile type APP1") and kind != b"iTXt":
            self.text = self.text or _exif_orientation(_raw_profile(kind, rest))


def _raw_profile(kind: bytes, body: bytes) -> bytes:
    """EXIF of a raw profile (a name, a length, hexadecimal digits, as ImageMagick writes it), or nothing."""
    try:
        text = zlib.decompressobj().decompress(body[1:], MAX_TEXT) if kind == b"zTXt" else body
        return bytes.fromhex("".join(text.decode("ascii").split()[2:])).removeprefix(b"Exif\0\0")
    except (zlib.error, ValueError):
        return b""


def _exif_orientation(exif: bytes) -> int:
    """EXIF's orientation; 0 where there is none or the block is damaged, which is no reason not to read a page."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 0
    try:
        return _valid(_Directory.of(exif).number(_ORIENTATION, exif, 0))
    except (struct.error, ImageError):
        return 0


_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s{0,9}(?:=\s{0,9}["']|>)\s{0,9}([1-8])\s{0,9}["'<]""")


def _xmp_orientation(xmp: bytes) -> int:
    """XMP's orientation, as an attribute or an element; 0 where there is none."""
    found = _XMP_ORIENTATION.search(xmp, 0, MAX_TEXT)
    return int(found.group(1)) if found else 0


def _valid(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 0


# WebP: RIFF chunks of name, length, data, even padding (RFC 9649)


def _webp_orientation(data: bytes) -> int:
    at, found = 12, _Orientations()
    for _ in range(MAX_PIECES):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            found.own = found.own or _exif_orientation(
                data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
            )
        if name == b"XMP ":
            found.xmp = found.xmp or _xmp_orientation(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return found.first()
