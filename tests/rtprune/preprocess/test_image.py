"""Decoding of page images: what is read, what is refused, and that nothing escapes as a traceback."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from rtprune.errors import InvalidInput
from rtprune.preprocess.image import decode
from rtprune.settings import Settings
from tests.serving import files
from tests.serving.pages import BAD_IMAGES, BadImage, encode, noise, picture, png_header, upright_cases

# pytest shows warnings that the decoder's own filter hides outside of tests.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
SETTINGS = Settings()
CASES = upright_cases()
ROOT = Path(__file__).resolve().parents[3]


def pixels(data: bytes) -> NDArray[Any]:
    """int (H, W, 3) of an encoded image."""
    return np.asarray(decode(data, SETTINGS).convert("RGB")).astype(int)


def read_or_refused(data: bytes) -> bool:
    """Whether the bytes are read; anything but a picture or a sentence is an error."""
    try:
        image = decode(data, SETTINGS)
    except InvalidInput as error:
        message = str(error)
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 200
        return False
    assert image.mode in ("L", "RGB")
    assert image.width * image.height <= SETTINGS.max_pixels
    return True


# What is read


@pytest.mark.parametrize("name", CASES)
def test_every_form_is_the_same_picture(name: str) -> None:
    image = decode(CASES[name], SETTINGS)
    assert image.mode in ("L", "RGB")
    assert image.size == picture().size
    difference = np.abs(pixels(CASES[name]) - np.asarray(picture()).astype(int))
    assert difference.mean() < 2, name
    assert np.median(difference) <= 2, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_made_upright(kind: str, orientation: int) -> None:
    page = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40).resize(
        (48, 32), Image.Resampling.BOX
    )
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    turns = {2: 0, 4: 1, 8: 2, 3: 3, 6: 4, 5: 5, 7: 6}  # Image.Transpose's numbers
    stored = page if orientation == 1 else page.transpose(Image.Transpose(turns[undo[orientation]]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encode(stored, kind, exif=exif, **options))
    assert found.shape[:2] == (32, 48)
    np.testing.assert_allclose(found[..., 0], np.asarray(page), atol=4)


def test_grey_stays_one_channel() -> None:
    for name in ("grey", "bilevel", "16-bit grey PNG", "grey with alpha"):
        assert decode(CASES[name], SETTINGS).mode == "L", name


def test_one_pixel_is_a_page() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), "red")), SETTINGS).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.arange(65536).astype(np.uint16).reshape(256, 256)
    image = np.asarray(decode(encode(Image.fromarray(ramp), kind), SETTINGS))
    np.testing.assert_array_equal(image, np.rint(ramp / 257))


def test_twelve_bits_are_scaled() -> None:
    body = bytes((0xFF, 0xFF, 0xFF, 0x80, 0x00, 0x00)) * 8  # two samples in three bytes: 4095, 4095, 2048, 0
    image = np.asarray(decode(files.grey_tiff(4, 8, body, bits=12), SETTINGS))
    assert image[0].tolist() == [255, 255, 128, 0]


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert (pixels(encode(half)) == 127).all()
    assert (pixels(encode(half.convert("LA"))) == 127).all()
    assert (pixels(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))) == 255).all()


def test_cmyk_of_jpeg_is_inverted_with_and_without_adobes_segment() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    data = encode(inks, "JPEG", quality=100)
    start = data.index(b"\xff\xee")
    bare = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    assert b"Adobe" in data
    assert b"Adobe" not in bare
    for form in (data, bare, encode(inks, "TIFF")):
        np.testing.assert_allclose(pixels(form), np.broadcast_to((255, 0, 0), (16, 16, 3)), atol=2)


# Base64 and limits


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WebP", "BMP", "palette GIF", "TIFF LZW"])
def test_base64_is_read_as_what_it_holds(name: str) -> None:
    data = CASES[name]
    text = base64.b64encode(data)
    for form in (text, base64.encodebytes(data), b"data:image/png;base64," + text, b"\r\n" + text + b" "):
        np.testing.assert_array_equal(pixels(form), pixels(data))


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: text + b"=", lambda text: b"!" + text]
)
def test_base64_is_strict(change: object) -> None:
    text = base64.b64encode(CASES["PNG"] + b"\0")  # so that it ends in padding or not by its length alone
    with pytest.raises(InvalidInput, match="not an image"):
        decode(change(text), SETTINGS)  # type: ignore[operator]


def test_the_byte_limit() -> None:
    data = encode(picture())
    for form in (data, base64.b64encode(data), base64.encodebytes(data)):
        assert decode(form, Settings(max_image_bytes=len(data))).size == (320, 240)
        with pytest.raises(InvalidInput, match=f"has {len(data)} bytes; at most {len(data) - 1} are allowed"):
            decode(form, Settings(max_image_bytes=len(data) - 1))


def test_the_pixel_and_aspect_limits() -> None:
    data = encode(Image.new("L", (100, 50)))
    assert decode(data, Settings(max_pixels=5000, max_aspect=2)).size == (100, 50)
    with pytest.raises(InvalidInput, match="100 x 50 pixels; at most 4999"):
        decode(data, Settings(max_pixels=4999))
    with pytest.raises(InvalidInput, match="at most 1 times"):
        decode(data, Settings(max_aspect=1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_declared_size_is_refused_before_it_is_decoded(kind: str) -> None:
    side = 16_000 if kind == "WEBP" else 30_000
    data = bytearray(encode(Image.new("RGB", (8, 8)), kind, **({"lossless": True} if kind == "WEBP" else {})))
    match kind:
        case "PNG":
            data = bytearray(png_header(side, side))
        case "JPEG":
            at = data.index(b"\xff\xc0") + 5
            data[at : at + 4] = side.to_bytes(2, "big") * 2
        case "GIF":
            data[6:10] = side.to_bytes(2, "little") * 2
        case "BMP":
            data[18:26] = side.to_bytes(4, "little") * 2
        case "TIFF":
            data = bytearray(files.grey_tiff(side, side, bytes(64)))
        case "WEBP":
            data[21:25] = (side - 1 | side - 1 << 14).to_bytes(4, "little")
    assert len(data) < 1024
    tracemalloc.start()
    with pytest.raises(InvalidInput) as raised:
        decode(bytes(data), SETTINGS)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    if kind != "WEBP":  # libwebp finds out first that so few bytes hold no such picture
        assert f"declares {side} x {side} pixels; at most {SETTINGS.max_pixels}" in str(raised.value)


# What is refused


@pytest.mark.parametrize("bad", BAD_IMAGES, ids=lambda bad: bad.name)
def test_bad_images_get_one_sentence(bad: BadImage, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode(bad.data, SETTINGS)
    message = str(raised.value)
    assert bad.sentence in message
    assert message.endswith(".")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")  # libtiff would write there


TRUNCATED: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {},
    "JPEG, progressive": {"progressive": True},
    "JPEG, CMYK": {"mode": "CMYK"},
    "WEBP": {},
    "WEBP, lossless": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "TIFF, deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF, JPEG": {"compression": "jpeg"},
    "TIFF, G4": {"compression": "group4", "mode": "1"},
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_cut_anywhere_is_refused(name: str) -> None:
    options = dict(TRUNCATED[name])
    page = noise().resize((64, 48)).convert(str(options.pop("mode", "RGB")))
    data = encode(page, name.partition(",")[0], **options)
    decode(data, SETTINGS)
    cuts = {*range(1, 40), *range(40, len(data), max(1, len(data) // 150))}
    assert not [cut for cut in cuts if read_or_refused(data[:-cut])]


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 2}, {"optimize": True}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(8, 8), (17, 33), (160, 120), (500, 301)])
def test_a_cut_jpeg_with_an_end_marker_is_refused(size: tuple[int, int], options: dict[str, object]) -> None:
    data = encode(noise().resize(size), "JPEG", **options)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels(data), whole)
    scan = data.index(b"\xff\xda") + 14
    for share in (0.3, 0.6, 0.9):
        cut = data[: scan + int((len(data) - 2 - scan) * share)]
        if len(data) - len(cut) > 40:  # the decoder can't tell the loss of a last few blocks
            assert not read_or_refused(cut.removesuffix(b"\xff") + b"\xff\xd9")


def test_nothing_hostile_takes_memory() -> None:
    """All bad images, and full-size bombs, in a process of their own, by its peak."""
    script = (
        "import json, resource\n"
        "from rtprune.preprocess.image import decode\n"
        "from rtprune.errors import InvalidInput\n"
        "from rtprune.settings import Settings\n"
        "from tests.serving.pages import BAD_IMAGES, upright_cases\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "good, before, refused = upright_cases(), peak(), 0\n"
        "for data in [bad.data for bad in BAD_IMAGES] + list(good.values()):\n"
        "    try:\n"
        "        decode(data, Settings())\n"
        "    except InvalidInput:\n"
        "        refused += 1\n"
        "print(json.dumps([before, peak(), refused]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    before, after, refused = json.loads(done.stdout)
    assert refused == len(BAD_IMAGES)
    assert after - before < 64  # MiB


def test_threads_do_not_disturb_each_other() -> None:
    names = [*CASES] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: pixels(CASES[name]), names))
    for name, image in zip(names, found, strict=True):
        np.testing.assert_array_equal(image, pixels(CASES[name]))


# Fuzzing

SMALL = sorted((data for data in CASES.values() if len(data) < 300_000), key=len)


@given(st.binary(max_size=400), st.sampled_from([b"", *(data[:12] for data in SMALL)]))
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    read_or_refused(start + data)


@given(st.sampled_from(SMALL), st.data())
def test_mutated_files_are_read_or_refused(data: bytes, draw: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    read_or_refused(bytes(mutated[: draw.draw(st.integers(0, len(mutated)))]))


def fuzz(count: int, seed: int) -> int:
    """Mutate files: bytes, bits, numbers, doubled and removed parts, mostly in headers; how many are still read."""
    rng, read = np.random.default_rng(seed), 0
    for _ in range(count):
        data = bytearray(SMALL[rng.integers(len(SMALL))])
        head = min(len(data), 600)
        for _ in range(rng.integers(1, 8)):
            place = int(rng.integers(head if rng.random() < 0.7 else len(data)))
            match rng.integers(6):
                case 0 | 1:
                    data[place] = rng.integers(256)
                case 2:
                    data[place] ^= 1 << rng.integers(8)
                case 3:
                    data[place : place + 4] = rng.choice([0, 1, 2**31 - 1, 2**32 - 1]).astype("<u4").tobytes()
                case 4:
                    data[place:place] = data[place : place + int(rng.integers(1, 64))]
                case 5:
                    del data[place : place + int(rng.integers(1, 16))]
            head = max(1, min(head, len(data)))
        read += read_or_refused(bytes(data))
    return read


def test_a_few_thousand_mutations(capfd: pytest.CaptureFixture[str]) -> None:
    assert 0 < fuzz(3000, seed=1) < 3000
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_mutations() -> None:
    for seed in range(2, 32):
        fuzz(5000, seed)
