"""The decoder that server and client share: every type of sample, every place of an orientation, pages and previews."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from rtprune.preprocess.imaging import ImageError, Limits, decode, kind_of, tiff_pages
from tests.serving.files import LONG, SHORT, encode, grey_tiff, tiff

ROOT = Path(__file__).resolve().parents[3]
COPY = ROOT / "client" / "deepseek_ocr_client" / "imaging"
OWN = ROOT / "rtprune" / "preprocess" / "imaging"
# pytest shows warnings that a program hides.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
LIMITS = Limits(pixels=10**8, memory=10**8, aspect=200)
RAMP = np.linspace(0, 1, 96).reshape(8, 12)
GREY = np.rint(RAMP * 255).astype(int)


def test_the_client_has_the_same_decoder() -> None:
    own, copy = ({path.name: path.read_bytes() for path in home.glob("*.py")} for home in (OWN, COPY))
    assert own == copy, f"cp {OWN.relative_to(ROOT)}/*.py {COPY.relative_to(ROOT)}/"


# Samples

TYPES: dict[str, tuple[str, int, float]] = {
    "int8": ("i1", 2, 127),
    "int16": ("i2", 2, 32767),
    "uint16": ("u2", 1, 65535),
    "int32": ("i4", 2, 2**31 - 1),
    "uint32": ("u4", 1, 2**32 - 1),
    "int64": ("i8", 2, 2**62),
    "uint64": ("u8", 1, 2**63),
    "float16": ("f2", 3, 1),
    "float32": ("f4", 3, 1),
    "float64": ("f8", 3, 1),
    "float32 to 255": ("f4", 3, 255),
    "float64 to 1000": ("f8", 3, 1000),
    "16 bits in int32": ("i4", 2, 65535),
    "8 bits in uint32": ("u4", 1, 255),
    "8 bits in int16": ("i2", 2, 255),
}
RAW, DEFLATE, PACKBITS = 1, 8, 32773


def packed(body: bytes) -> bytes:
    """PackBits without any runs."""
    return b"".join(
        bytes([len(part) - 1]) + part for part in (body[n : n + 128] for n in range(0, len(body), 128))
    )


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [RAW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_sample_is_scaled_to_grey(
    name: str, white_is_zero: bool, compression: int, order: str
) -> None:
    dtype, form, top = TYPES[name]
    values = (1 - RAMP if white_is_zero else RAMP) * top
    body = values.astype(order + dtype).tobytes()
    body = body if compression == RAW else zlib.compress(body) if compression == DEFLATE else packed(body)
    bits, photometric = 8 * int(dtype[1:]), 0 if white_is_zero else 1
    data = grey_tiff(
        12, 8, body, order=order, bits=bits, format=form, photometric=photometric, compression=compression
    )
    image = decode(data, LIMITS)
    assert image.mode == "L"
    off = 255 if name == "int64" or name == "uint64" else 1  # half of the type's range: white is the whole
    scale = 0.5 if off == 255 else 1
    expected = 255 - (255 - GREY) * scale if white_is_zero else GREY * scale
    np.testing.assert_allclose(np.asarray(image).astype(float), expected, atol=2)  # int8 has 128 steps


def test_negative_samples_are_black_and_no_numbers_too() -> None:
    signed = grey_tiff(4, 1, np.array([-32768, -1, 0, 32767], "<i2").tobytes(), bits=16, format=2)
    assert np.asarray(decode(signed, LIMITS)).tolist() == [[0, 0, 0, 255]]
    floats = grey_tiff(4, 1, np.array([np.nan, np.inf, -1, 1], "<f4").tobytes(), bits=32, format=3)
    assert np.asarray(decode(floats, LIMITS)).tolist() == [[0, 0, 0, 255]]


def test_colours_of_wide_samples() -> None:
    values = np.stack([RAMP, 1 - RAMP, RAMP * 0], 2)
    tags = [
        (256, LONG, 1, 12), (257, LONG, 1, 8), (258, SHORT, 1, 32), (259, SHORT, 1, 1), (262, SHORT, 1, 2),
        (273, LONG, 1, 8), (277, SHORT, 1, 3), (278, LONG, 1, 8), (279, LONG, 1, 1152), (339, SHORT, 1, 3),
    ]  # fmt: skip
    image = decode(tiff(tags, values.astype("<f4").tobytes()), LIMITS)
    np.testing.assert_allclose(np.asarray(image), np.rint(values * 255), atol=1)


def test_two_and_four_bits_and_tiles() -> None:
    four = grey_tiff(4, 1, bytes((0x0F, 0x80)), bits=4)
    assert np.asarray(decode(four, LIMITS)).tolist() == [[0, 255, 136, 0]]
    two = grey_tiff(4, 1, bytes((0b00011011,)), bits=2)
    assert np.asarray(decode(two, LIMITS)).tolist() == [[0, 85, 170, 255]]
    values = np.arange(16 * 16, dtype=">f4").reshape(16, 16)
    tags = [
        (256, LONG, 1, 12), (257, LONG, 1, 8), (258, SHORT, 1, 32), (259, SHORT, 1, 1), (262, SHORT, 1, 1),
        (277, SHORT, 1, 1), (322, LONG, 1, 16), (323, LONG, 1, 16), (324, LONG, 1, 8), (325, LONG, 1, 1024),
        (339, SHORT, 1, 3),
    ]  # fmt: skip
    image = decode(tiff(tags, values.tobytes(), ">"), LIMITS)
    np.testing.assert_allclose(np.asarray(image), values[:8, :12] * 255 / values[:8, :12].max(), atol=1)


@pytest.mark.parametrize("compression", [34925, 50000, 50001, 6])  # LZMA, Zstandard, WebP, old JPEG
def test_compressions_are_the_same_for_every_sample(compression: int) -> None:
    for bits, form in ((8, 1), (32, 3)):
        data = grey_tiff(12, 8, bytes(384), bits=bits, format=form, compression=compression)
        with pytest.raises(ImageError, match="compression is not read"):
            decode(data, LIMITS)


# Pages


def directories(*pages: tuple[int, dict[int, int]]) -> bytes:
    """A TIFF of grey pages, each of one shade and with more tags; 4 x 4 px."""
    data, pointer = b"II*\0\0\0\0\0", 4
    for shade, more in pages:
        tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: len(data), 278: 4, 279: 16} | more
        start = len(data) + 16
        entries = b"".join(struct.pack("<HHII", tag, LONG, 1, tags[tag]) for tag in sorted(tags))
        data = data[:pointer] + struct.pack("<I", start) + data[pointer + 4 :]
        data += bytes([shade]) * 16 + struct.pack("<H", len(tags)) + entries
        pointer = len(data)
        data += bytes(4)
    return data


PREVIEW, MASK, OLD_PREVIEW = {254: 1}, {254: 4}, {255: 2}


def shades(data: bytes) -> list[Any]:
    return [decode(data, LIMITS, page).getpixel((0, 0)) for page in range(len(tiff_pages(data)))]


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([(10, {}), (20, PREVIEW), (30, OLD_PREVIEW)], [10]),
        ([(10, PREVIEW), (20, {}), (30, MASK), (40, {254: 2})], [20, 40]),
        ([(10, OLD_PREVIEW), (20, {255: 3})], [20]),
        ([(10, PREVIEW)], [10]),
        ([(10, {254: 0}), (20, {255: 1})], [10, 20]),
    ],
)
def test_previews_are_no_pages(pages: list[tuple[int, dict[int, int]]], expected: list[int]) -> None:
    assert shades(directories(*pages)) == expected


def test_a_chain_that_breaks_off_has_a_last_page_that_fails() -> None:
    data = directories((10, {}), (20, {}), (30, {}))
    cut = data[: tiff_pages(data)[2] + 20]
    assert len(tiff_pages(cut)) == 3
    assert [decode(cut, LIMITS, page).getpixel((0, 0)) for page in (0, 1)] == [10, 20]
    with pytest.raises(ImageError, match="damaged or incomplete TIFF"):
        decode(cut, LIMITS, 2)


def test_a_chain_that_leads_back_ends() -> None:
    data = directories((10, {}), (20, {}))
    assert shades(data[:-4] + struct.pack("<I", tiff_pages(data)[0])) == [10, 20]


# Orientation

PICTURE = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40).resize(
    (48, 32), Image.Resampling.BOX
)
TURNED = PICTURE.transpose(Image.Transpose.ROTATE_90)  # shown right by orientation 6


def exif(orientation: int, kind: int = SHORT, order: str = "<") -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    value = struct.pack(
        order + "HH" if kind == SHORT else order + "I",
        *((orientation, 0) if kind == SHORT else (orientation,)),
    )
    return b"Exif\0\0" + head + struct.pack(order + "HHHI", 1, 274, kind, 1) + value + bytes(4)


def xmp(orientation: int, form: str = "tiff:Orientation='{}'") -> bytes:
    said = form.format(orientation)
    body = f"<rdf:Description {said}/>" if "=" in said else f"<rdf:Description>{said}</rdf:Description>"
    return f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{body}</x:xmpmeta>".encode()


def png(*texts: tuple[str, str, bool], **options: Any) -> bytes:
    info = PngImagePlugin.PngInfo()
    for keyword, text, compressed in texts:
        if keyword == "XML:com.adobe.xmp":
            info.add_itxt(keyword, text)
        else:
            info.add_text(keyword, text, zip=compressed)
    return encode(TURNED, pnginfo=info, **options)


def raw_profile(block: bytes) -> str:
    digits = block.hex()
    return (
        f"\nexif\n{len(block):8}\n" + "\n".join(digits[n : n + 72] for n in range(0, len(digits), 72)) + "\n"
    )


ELEMENT, DOUBLE = "<tiff:Orientation> {} </tiff:Orientation>", 'tiff:Orientation = "{}"'
PLACES = {
    "EXIF": encode(TURNED, "JPEG", exif=exif(6)),
    "EXIF, LONG": encode(TURNED, "JPEG", exif=exif(6, LONG)),
    "EXIF, big-endian LONG": encode(TURNED, "JPEG", exif=exif(6, LONG, ">")),
    "XMP of a JPEG": encode(TURNED, "JPEG", xmp=xmp(6)),
    "XMP element": encode(TURNED, "JPEG", xmp=xmp(6, ELEMENT)),
    "XMP of a WebP": encode(TURNED, "WEBP", lossless=True, xmp=xmp(6, DOUBLE)),
    "EXIF of a WebP, LONG": encode(TURNED, "WEBP", lossless=True, exif=exif(6, LONG)),
    "eXIf, LONG": png(exif=exif(6, LONG)),
    "XMP of a PNG": png(("XML:com.adobe.xmp", xmp(6).decode(), False)),
    "raw profile": png(("Raw profile type exif", raw_profile(exif(6)), True)),
    "raw profile, not compressed": png(("Raw profile type APP1", raw_profile(exif(6, LONG, ">")), False)),
    "TIFF's tag, LONG": encode(TURNED, "TIFF", tiffinfo={274: 6}),
    "XMP of a TIFF": encode(TURNED, "TIFF", tiffinfo={700: xmp(6)}),
    "EXIF before XMP": encode(TURNED, "JPEG", exif=exif(6), xmp=xmp(3)),
    "EXIF before a raw profile before XMP": png(
        ("XML:com.adobe.xmp", xmp(3).decode(), False),
        ("Raw profile type exif", raw_profile(exif(2)), True),
        exif=exif(6),
    ),
    "a raw profile before XMP": png(
        ("XML:com.adobe.xmp", xmp(3).decode(), False), ("Raw profile type exif", raw_profile(exif(6)), True)
    ),
    "broken EXIF, then XMP": encode(TURNED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", xmp=xmp(6)),
    "EXIF of no orientation, then XMP": encode(TURNED, "JPEG", exif=exif(9), xmp=xmp(6)),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_orientation_is_found_wherever_it_stands(place: str) -> None:
    image = decode(PLACES[place], LIMITS)
    assert image.size == PICTURE.size
    np.testing.assert_allclose(np.asarray(image.convert("L")).astype(int), np.asarray(PICTURE), atol=4)


@pytest.mark.parametrize(
    "data",
    [
        encode(TURNED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\1" * 30),
        encode(TURNED, "JPEG", xmp=b"<x tiff:Orientation='0'/>" + b"tiff:Orientation" * 3000),
        png(("Raw profile type exif", "\nexif\n 8\nzz", True)),
        png(("Raw profile type exif", "", True)),
        png(("Raw profile type exif", raw_profile(exif(6))[:-9], True)),
    ],
)
def test_what_cannot_be_read_is_no_orientation(data: bytes) -> None:
    assert decode(data, LIMITS).size in (TURNED.size, PICTURE.size)


def test_a_bomb_in_a_profile_is_not_blown_up() -> None:
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text("Raw profile type exif", "0" * 50_000_000, zip=True)
    assert decode(encode(TURNED, pnginfo=bomb), LIMITS).size == TURNED.size


# Large pages


def test_grey_and_two_colours_may_have_more_pixels_than_colour() -> None:
    limits = LIMITS._replace(memory=400)
    assert decode(encode(Image.new("L", (20, 20))), limits).size == (20, 20)
    assert decode(encode(Image.new("1", (20, 20)), "TIFF", compression="group4"), limits).size == (20, 20)
    for data in (encode(Image.new("RGB", (20, 20))), encode(Image.new("RGB", (20, 20)), "TIFF")):
        with pytest.raises(ImageError, match="take 0 MB; at most 0 MB"):
            decode(data, limits)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_over_the_limit_is_decoded_smaller_and_keeps_its_size(orientation: int) -> None:
    page = Image.radial_gradient("L").resize((400, 300)).convert("RGB")
    data = encode(page, "JPEG", exif=exif(orientation))
    image = decode(data, LIMITS._replace(memory=400 * 300 * 4 // 5))
    upright = (400, 300) if orientation == 1 else (300, 400)
    assert image.info["size"] == upright
    assert image.size == tuple(side // 4 for side in upright)
    assert "size" not in decode(data, LIMITS).info


# Formats that need a library


def test_avif_is_read_where_pillow_can() -> None:
    buffer = io.BytesIO()
    try:
        TURNED.convert("RGB").save(buffer, "AVIF", quality=95, exif=exif(6))
    except (KeyError, OSError):
        pytest.skip("Pillow was built without AVIF")
    assert kind_of(buffer.getvalue()) == "AVIF"
    image = decode(buffer.getvalue(), LIMITS)
    assert image.size == PICTURE.size
    np.testing.assert_allclose(np.asarray(image.convert("L")).astype(int), np.asarray(PICTURE), atol=16)


def test_heic_is_read_with_the_extra_and_named_without() -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    with pytest.raises(ImageError, match="HEIC"):
        decode(head, LIMITS)
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(PICTURE.convert("RGB")).save(buffer, quality=95)
    image = decode(buffer.getvalue(), LIMITS)
    np.testing.assert_allclose(np.asarray(image.convert("L")).astype(int), np.asarray(PICTURE), atol=16)


# Cut and changed files

TIFFS = [
    *(
        encode(PICTURE, "TIFF", compression=kind)
        for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ),
    encode(PICTURE.convert("RGB"), "TIFF", compression="jpeg"),
    encode(PICTURE.convert("1"), "TIFF", compression="group4"),
    encode(PICTURE, "TIFF", save_all=True, append_images=[TURNED, PICTURE], compression="tiff_lzw"),
    directories((10, {}), (20, PREVIEW), (30, {})),
    grey_tiff(12, 8, RAMP.astype(">f4").tobytes(), order=">", bits=32, format=3),
]


def read_every_page(data: bytes) -> None:
    """Nothing but the decoder's own error comes out."""
    try:
        count = len(tiff_pages(data)) if kind_of(data) == "TIFF" else 1
    except ImageError:
        return
    for page in range(min(count, 5)):
        try:
            decode(data, LIMITS, page)
        except ImageError as error:
            assert str(error).endswith(".")


@pytest.mark.parametrize("data", TIFFS, ids=range(len(TIFFS)))
def test_a_tiff_cut_anywhere_fails_in_a_sentence(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    for cut in range(0, len(data), max(1, len(data) // 300)):
        read_every_page(data[:cut])
    assert capfd.readouterr() == ("", "")  # libtiff would write there


@given(st.sampled_from(TIFFS), st.data())
def test_a_changed_tiff_is_read_or_fails_in_a_sentence(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(st.integers(0, 255))
    read_every_page(bytes(changed))
