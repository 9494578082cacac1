"""Boxes and tokens on the page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ocr_client.errors import ServerFailed
from deepseek_ocr_client.geometry import Layout, Rectangle, TokenMap, to_pixels
from deepseek_ocr_client.tags import Box


def test_boxes_are_fractions_of_the_page() -> None:
    assert to_pixels(Box(0, 0, 999, 999), 1191, 1684) == Box(0, 0, 1191, 1684)
    assert to_pixels(Box(333, 333, 666, 666), 999, 1998) == Box(333, 666, 666, 1332)


def test_corners_are_rounded_down_as_the_reference_code_does() -> None:
    # int(v / 999 * side) of each; rounding the far corner up would give 358 and 675.
    assert to_pixels(Box(10, 21, 300, 400), 1191, 1684) == Box(11, 35, 357, 674)
    assert to_pixels(Box(1, 1, 2, 2), 100, 100) == Box(0, 0, 0, 0)


@given(st.tuples(*[st.integers(0, 999)] * 4), st.integers(1, 20_000), st.integers(1, 20_000))
def test_pixel_boxes_stay_on_the_page(corners: tuple[int, ...], width: int, height: int) -> None:
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    box = to_pixels(Box(x1, y1, x2, y2), width, height)
    assert 0 <= box.x1 <= box.x2 <= width
    assert 0 <= box.y1 <= box.y2 <= height


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ([512, 0, 0, 700, 900, 0, 0, 5689], 73),
        ([640, 0, 0, 700, 900, 0, 0, 7111], 111),
        ([1024, 0, 0, 700, 900, 114, 0, 11378], 273),
        ([1280, 0, 0, 700, 900, 142, 0, 14222], 421),
        ([1024, 2, 3, 700, 900, 114, 0, 11378], 30 * 21 + 273),
    ],
)
def test_sequence_lengths_of_the_modes(values: list[int], tokens: int) -> None:
    assert Layout.of(values).sequence_length == tokens


@pytest.mark.parametrize("values", [[], [1] * 7, [0] * 8, [1024, 0, 0, -1, 5, 0, 0, 1], [1] * 9])
def test_what_is_no_layout_is_refused(values: list[int]) -> None:
    with pytest.raises(ServerFailed):
        Layout.of(values)


def test_tokens_of_a_padded_page_lie_where_the_page_is() -> None:
    # 512 x 1024 page in a 1024 px view: 256 px of padding left and right, so 4 empty columns on each side.
    tokens = TokenMap(Layout.of([1024, 0, 0, 512, 1024, 256, 0, 10_000]))
    assert tokens.token(3) == ("global", 3, 0, Rectangle(0, 0, 0, 64))  # padding shows nothing of the page
    assert tokens.token(4) == ("global", 4, 0, Rectangle(0, 0, 64, 64))
    assert tokens.token(11) == ("global", 11, 0, Rectangle(448, 0, 512, 64))
    # A row's newline, the separator, and what is beyond either end.
    assert [tokens.token(position) for position in (16, 272, 273, -1)] == [None] * 4


def test_tokens_of_a_stretched_page_cover_it() -> None:
    tokens = TokenMap(Layout.of([640, 0, 0, 100, 200, 0, 0, 32_000]))
    assert tokens.token(9 * 11 + 9) == ("global", 9, 9, Rectangle(90, 180, 100, 200))


def test_tiles_come_first_then_the_global_view() -> None:
    tokens = TokenMap(Layout.of([1024, 2, 1, 2000, 1000, 0, 256, 5120]))
    assert tokens.token(0) == ("tiles", 0, 0, Rectangle(0, 0, 100, 100))
    assert tokens.token(20) is None
    assert tokens.token(21) == ("tiles", 0, 1, Rectangle(0, 100, 100, 200))
    start = 10 * 21
    assert tokens.token(start) == ("global", 0, 0, Rectangle(0, 0, 125, 0))
    assert tokens.token(start + 4 * 17) == ("global", 0, 4, Rectangle(0, 0, 125, 125))


@given(
    st.sampled_from([(512, 0, 0), (640, 0, 0), (1024, 0, 0), (1280, 0, 0), (1024, 2, 3), (1024, 9, 1)]),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_content_tokens_cover_the_page_once_per_view(
    grid: tuple[int, int, int], width: int, height: int
) -> None:
    side, columns, rows = grid
    scale = side / max(width, height)
    padded = side in (1024, 1280)
    left = (side - round(width * scale)) // 2 if padded else 0
    top = (side - round(height * scale)) // 2 if padded else 0
    layout = Layout(side, columns, rows, width, height, left, top, scale)
    tokens = TokenMap(layout)
    area = {"tiles": 0.0, "global": 0.0}
    for position in range(layout.sequence_length):
        token = tokens.token(position)
        if token is not None:
            box = token.area
            assert -1e-6 <= box.left <= box.right <= width + 1e-6
            assert -1e-6 <= box.top <= box.bottom <= height + 1e-6
            area[token.view] += (box.right - box.left) * (box.bottom - box.top)
    assert area["global"] == pytest.approx(width * height, rel=1e-6)
    if columns:
        assert area["tiles"] == pytest.approx(width * height, rel=1e-6)
