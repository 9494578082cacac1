"""Images of every kind become bytes that a server can read, or a sentence."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, features

from deepseek_ocr_client.documents import open_document
from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.images import encode_image, flatten, open_image
from deepseek_ocr_client.settings import ClientSettings

SETTINGS = ClientSettings()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def test_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(PIXELS), "JPEG")
    path = tmp_path / "page.jpg"
    path.write_bytes(data)
    for image in (path, str(path), data, bytearray(data), memoryview(data)):
        assert encode_image(image, SETTINGS) == data


@pytest.mark.parametrize("image", [PIXELS, Image.fromarray(PIXELS), np.asfortranarray(PIXELS)])
def test_pictures_and_arrays_become_png_without_loss(image: Image.Image | npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(decoded(encode_image(image, SETTINGS)), PIXELS)


def test_grey_and_transparent_arrays() -> None:
    grey = PIXELS[:, :, 0]
    for array in (grey, grey[:, :, None]):
        assert np.array_equal(decoded(encode_image(array, SETTINGS))[:, :, 0], grey)
    clear = np.zeros((4, 4, 4), np.uint8)  # black, but wholly transparent: paper shows through
    assert decoded(encode_image(clear, SETTINGS)).min() == 255
    palette = Image.fromarray(clear).convert("P")
    assert decoded(encode_image(palette, SETTINGS)).min() == 255
    palette.palette = None  # as Pillow opens a PNG without one
    assert decoded(encode_image(palette, SETTINGS)).shape == (4, 4, 3)


def test_photographs_are_turned_upright() -> None:
    turned = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(turned, "JPEG", exif=exif)
    assert open_image(data, SETTINGS).size == (10, 20)


def test_sixteen_bits_keep_their_contrast() -> None:
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert np.asarray(flatten(deep)).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 ...", "PDF"),
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
        ("no-such-file.png", "no file"),
        (object(), "object"),
        (3, "int"),
    ],
)
def test_what_is_no_image_gets_a_sentence(image: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        encode_image(image, SETTINGS)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_limits_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS)))
    with pytest.raises(InvalidRequest, match="limit"):
        encode_image(path, replace(SETTINGS, max_image_bytes=100))
    with pytest.raises(InvalidRequest, match="30 x 40 pixels"):
        encode_image(PIXELS, replace(SETTINGS, max_image_pixels=1000))
    with pytest.raises(InvalidRequest, match="30 x 40 pixels"):
        open_image(path.read_bytes(), replace(SETTINGS, max_image_pixels=1000))


@pytest.mark.parametrize(
    "data", [b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n"]
)
def test_other_formats_are_not_opened(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        open_image(data, SETTINGS)
    path = tmp_path / "page.png"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="page.png"):
        open_document(path, SETTINGS)


def test_a_cut_off_picture_gets_a_sentence() -> None:
    data = encoded(Image.fromarray(PIXELS))
    with pytest.raises(InvalidRequest, match="can't be decoded"):
        open_image(data[: len(data) // 2], SETTINGS)


def test_every_page_of_a_tiff_is_a_page(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 20, 30)]
    path = tmp_path / "fax.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with open_document(path, SETTINGS) as document:
        assert document.page_count == 3
        shades = [decoded(page.image)[0, 0, 0] for page in document.pages(document.choose(None))]
    assert shades == [10, 20, 30]


def test_a_single_image_is_a_document_of_one_page(tmp_path: Path) -> None:
    path = tmp_path / "page.gif"
    path.write_bytes(encoded(Image.new("L", (8, 8)), "GIF"))
    with open_document(path, SETTINGS) as document:
        [page] = document.pages(document.choose(None))
        assert page.image == path.read_bytes()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_photographs_that_few_servers_read_are_sent_as_jpeg(kind: str, tmp_path: Path) -> None:
    page = Image.radial_gradient("L").resize((64, 48)).convert("RGB")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    path = tmp_path / f"page.{kind.lower()}"
    page.save(path, kind, quality=95)
    sent = encode_image(path, SETTINGS)
    assert sent.startswith(b"\xff\xd8\xff")
    assert np.abs(decoded(sent).astype(int) - np.asarray(page)).mean() < 4
    with open_document(path, SETTINGS) as document:
        [rendered] = document.pages([1])
    assert rendered.image == sent


def test_a_picture_in_any_mode_becomes_grey_or_colour() -> None:
    ramp = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert np.asarray(flatten(Image.fromarray(ramp))).tolist() == ramp.tolist()
    assert np.asarray(flatten(Image.fromarray((ramp / 255).astype(np.float32)))).tolist() == ramp.tolist()
    with pytest.raises(InvalidRequest, match="colour space, LAB"):
        flatten(Image.new("LAB", (4, 4)))
