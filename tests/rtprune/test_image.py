"""Decoding of page images: what is read, what is refused, and that nothing escapes as a traceback."""

from __future__ import annotations

import base64
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rtprune.errors import InvalidInput
from rtprune.image import decode
from rtprune.settings import Settings
from tests.serving.pages import BAD_IMAGES, BadImage, encode, picture, png_header, upright_cases

SETTINGS = Settings()
CASES = upright_cases()


@pytest.mark.parametrize("name", CASES)
def test_every_form_is_the_same_picture(name: str) -> None:
    image = decode(CASES[name], SETTINGS)
    assert image.mode == "RGB"
    assert image.size == picture().size
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(picture()).astype(int))
    assert difference.mean() < 2, name
    assert np.median(difference) <= 2, name


@pytest.mark.parametrize("bad", BAD_IMAGES, ids=lambda bad: bad.name)
def test_bad_images_get_one_sentence(bad: BadImage) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode(bad.data, SETTINGS)
    message = str(raised.value)
    assert bad.sentence in message
    assert message.endswith(".")
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WebP", "BMP", "palette GIF", "TIFF LZW"])
def test_base64_is_read_as_what_it_holds(name: str) -> None:
    data = CASES[name]
    for text in (base64.b64encode(data), base64.encodebytes(data)):
        np.testing.assert_array_equal(np.asarray(decode(text, SETTINGS)), np.asarray(decode(data, SETTINGS)))


def test_the_byte_limit() -> None:
    data = encode(picture())
    assert decode(data, Settings(max_image_bytes=len(data))).size == (320, 240)
    for form in (data, base64.b64encode(data)):
        with pytest.raises(InvalidInput, match=f"at most {len(data) - 1} are allowed"):
            decode(form, Settings(max_image_bytes=len(data) - 1))


def test_a_declared_size_is_refused_before_it_is_decoded() -> None:
    data = png_header(30_000, 30_000)
    assert len(data) < 1024
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="at most 64000000"):
        decode(data, SETTINGS)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_one_pixel_is_a_page() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), "red")), SETTINGS).getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    image = np.asarray(decode(encode(Image.fromarray(ramp)), SETTINGS))[0, :, 0]
    np.testing.assert_allclose(image, np.arange(256), atol=1)


MUTABLE = sorted(CASES.values(), key=len)


@given(st.sampled_from(MUTABLE), st.data())
def test_mutated_files_are_read_or_refused(data: bytes, draw: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    mutated = mutated[: draw.draw(st.integers(0, len(mutated)))] if draw.draw(st.booleans()) else mutated
    try:
        image = decode(bytes(mutated), SETTINGS)
    except InvalidInput as error:
        assert str(error).endswith(".")
    else:
        assert image.mode == "RGB"


@pytest.mark.long
def test_many_mutated_files_are_read_or_refused() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20_000):
        data = bytearray(MUTABLE[rng.integers(len(MUTABLE))])
        for _ in range(rng.integers(1, 12)):
            data[rng.integers(min(len(data), 400) if rng.random() < 0.7 else len(data))] = rng.integers(256)
        try:
            decode(bytes(data), SETTINGS)
        except InvalidInput as error:
            assert str(error).endswith(".")
