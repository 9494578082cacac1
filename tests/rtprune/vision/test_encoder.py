"""The vision encoder on real engines: whole pages against transformers, batches, and errors of single pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.torch_reference import load_vision, sample_images
from export.verify import relative_error
from rtprune.errors import EngineError, InvalidInput, OcrError
from rtprune.manifest import Manifest
from rtprune.modes import MODES
from rtprune.settings import Settings
from rtprune.vision import VisionEncoder, VisionEngine
from training.config import DECODER

pytestmark = pytest.mark.slow("runs transformers' encoder beside the engines")

NO_TILES = np.empty((0, 640, 640, 3), np.uint8)


@pytest.fixture(scope="module")
def stage(random_engines: Path) -> Iterator[VisionEncoder]:
    opened = VisionEncoder.open(Manifest.load(random_engines), Settings())
    opened.warm_up()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def transformers_model(random_checkpoint: Path) -> Any:
    return load_vision(Checkpoint.open(random_checkpoint))


def page(
    side: int, grid: tuple[int, int] = (0, 0)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, int]]:
    tiles = sample_images(640, grid[0] * grid[1]) if grid[0] else NO_TILES
    return sample_images(side, 1)[0], tiles, grid


def encoded(result: NDArray[np.float32] | OcrError) -> NDArray[np.float32]:
    assert isinstance(result, np.ndarray), result
    return result


def pixels(images: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def transformers_tokens(
    model: Any, view: NDArray[Any], tiles: NDArray[Any], grid: tuple[int, int]
) -> NDArray[Any]:
    local: dict[str, Any] = {}
    if len(tiles):
        local = {
            "pixel_values_local": pixels(tiles),
            "num_local_patches": [len(tiles)],
            "patches_grid": [list(grid)],
        }
    return np.asarray(model.get_image_features(pixels(view[None]), **local).pooler_output[0])


def test_pages_are_those_of_transformers(stage: VisionEncoder, transformers_model: Any) -> None:
    """Three pages that wait together: two sizes, with tiles (more rows than columns) and without."""
    pages = [page(1024, (2, 3)), page(512), page(640)]
    for tokens, (view, tiles, grid) in zip(stage.encode_pages(pages), pages, strict=True):
        expected = transformers_tokens(transformers_model, view, tiles, grid)
        assert encoded(tokens).shape == expected.shape
        assert encoded(tokens).dtype == np.float32
        assert relative_error(encoded(tokens)[None], expected[None]) < 1e-4


def test_what_waits_together_changes_nothing(stage: VisionEncoder) -> None:
    pages = [page(640), page(512), page(1024, (1, 2))]
    alone = [encoded(stage.encode_pages([one])[0]) for one in pages]
    together = [encoded(one) for one in stage.encode_pages(pages)]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(alone, together, strict=True))
    assert stage.encode_pages([]) == []


def test_batches_are_as_large_as_the_setting_says(random_engines: Path) -> None:
    stage = VisionEncoder.open(Manifest.load(random_engines), Settings(vision_max_batch=2))
    sizes: list[int] = []

    class Counting:
        side = 640

        def __init__(self, engine: VisionEngine) -> None:
            self.engine = engine

        def encode(self, images: NDArray[Any]) -> NDArray[np.float32]:
            sizes.append(len(images))
            return self.engine.encode(images)

        def close(self) -> None:
            self.engine.close()

    stage._engines[640] = Counting(stage._engines[640])
    stage.encode_pages([page(640), page(1024, (2, 2))])
    assert sizes == [2, 2, 1], "one view and four tiles"
    stage.close()


def test_a_page_that_cannot_be_encoded_leaves_the_others_alone(stage: VisionEncoder) -> None:
    results = stage.encode_pages([page(512), page(768), (page(1024)[0], NO_TILES, (2, 2)), page(512)])
    assert isinstance(results[1], InvalidInput)
    assert "768 px" in str(results[1])
    assert isinstance(results[2], InvalidInput)
    assert np.array_equal(encoded(results[0]), encoded(results[3]))


def test_an_engine_that_fails_fails_the_pages_of_its_batch(random_engines: Path) -> None:
    stage = VisionEncoder.open(Manifest.load(random_engines), Settings())
    stage._engines[640].close()
    first, second = stage.encode_pages([page(640), page(512)])
    assert isinstance(first, EngineError)
    assert "640 px encoder is closed" in str(first)
    assert isinstance(second, np.ndarray)
    stage.close()


def test_values_that_are_not_finite_are_refused_where_they_appear(random_engines: Path) -> None:
    stage = VisionEncoder.open(Manifest.load(random_engines), Settings())

    class Overflowing:
        side = 512

        def encode(self, images: NDArray[Any]) -> NDArray[np.float32]:
            tokens = np.zeros((len(images), 64, DECODER["hidden_size"]), np.float32)
            tokens[0, 3, 7] = np.inf
            return tokens

        def close(self) -> None:
            pass

    stage._engines[512] = Overflowing()
    first, second = stage.encode_pages([page(512), page(512)])
    assert isinstance(first, EngineError)
    assert "not finite" in str(first)
    assert isinstance(second, np.ndarray)


def test_every_mode_has_its_engines(stage: VisionEncoder) -> None:
    assert {side for mode in MODES.values() for side in mode.sides} == set(stage._engines)
