"""The vision encoder on real engines: whole pages against transformers, batches, and errors of single pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.family import special_token_ids
from export.torch_reference import load_vision, sample_images
from export.verify import relative_error
from rtprune.decoder.special_tokens import IMAGE
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import Manifest
from rtprune.modes import MODES
from rtprune.settings import Settings
from rtprune.vision import VisionEncoder
from training.config import DECODER

NO_TILES = np.empty((0, 640, 640, 3), np.uint8)


@pytest.fixture(scope="module")
def stage(random_engines: Path):
    opened = VisionEncoder.open(Manifest.load(random_engines), Settings())
    opened.warm_up()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def transformers_model(random_checkpoint: Path):
    checkpoint = Checkpoint.open(random_checkpoint)
    ids = special_token_ids(random_checkpoint / "tokenizer.json", 1000)
    return load_vision(checkpoint, ids[IMAGE])


def page(side: int, grid: tuple[int, int] = (0, 0)):
    tiles = sample_images(640, grid[0] * grid[1]) if grid[0] else NO_TILES
    return sample_images(side, 1)[0], tiles, grid


def pixels(images: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def transformers_tokens(
    model, view: NDArray[Any], tiles: NDArray[Any], grid: tuple[int, int]
) -> NDArray[Any]:
    local = {}
    if len(tiles):
        local = {
            "pixel_values_local": pixels(tiles),
            "num_local_patches": [len(tiles)],
            "patches_grid": [list(grid)],
        }
    return model.get_image_features(pixels(view[None]), **local).pooler_output[0].numpy()


def test_pages_are_those_of_transformers(stage, transformers_model):
    """Three pages that wait together: two sizes, with tiles (more rows than columns) and without."""
    pages = [page(1024, (2, 3)), page(512), page(640)]
    for tokens, (view, tiles, grid) in zip(stage.encode_pages(pages), pages, strict=True):
        expected = transformers_tokens(transformers_model, view, tiles, grid)
        assert tokens.shape == expected.shape
        assert tokens.dtype == np.float32
        assert relative_error(tokens[None], expected[None]) < 1e-4


def test_what_waits_together_changes_nothing(stage):
    pages = [page(640), page(512), page(1024, (1, 2))]
    alone = [stage.encode_pages([one])[0] for one in pages]
    together = stage.encode_pages(pages)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(alone, together, strict=True))
    assert stage.encode_pages([]) == []


def test_batches_are_as_large_as_the_setting_says(random_engines):
    stage = VisionEncoder.open(Manifest.load(random_engines), Settings(vision_max_batch=2))
    sizes = []

    class Counting:
        side = 640

        def __init__(self, engine):
            self.engine = engine

        def encode(self, images):
            sizes.append(len(images))
            return self.engine.encode(images)

        def close(self):
            self.engine.close()

    stage._engines[640] = Counting(stage._engines[640])
    stage.encode_pages([page(640), page(1024, (2, 2))])
    assert sizes == [2, 2, 1], "one view and four tiles"
    stage.close()


def test_a_page_that_cannot_be_encoded_leaves_the_others_alone(stage):
    results = stage.encode_pages([page(512), page(768), (page(1024)[0], NO_TILES, (2, 2)), page(512)])
    assert isinstance(results[1], InvalidInput)
    assert "768 px" in str(results[1])
    assert isinstance(results[2], InvalidInput)
    assert np.array_equal(results[0], results[3])


def test_an_engine_that_fails_fails_the_pages_of_its_batch(random_engines):
    stage = VisionEncoder.open(Manifest.load(random_engines), Settings())
    stage._engines[640].close()
    first, second = stage.encode_pages([page(640), page(512)])
    assert isinstance(first, EngineError)
    assert "640 px encoder is closed" in str(first)
    assert isinstance(second, np.ndarray)
    stage.close()


def test_values_that_are_not_finite_are_refused_where_they_appear(random_engines):
    stage = VisionEncoder.open(Manifest.load(random_engines), Settings())

    class Overflowing:
        side = 512

        def encode(self, images):
            tokens = np.zeros((len(images), 64, DECODER["hidden_size"]), np.float32)
            tokens[0, 3, 7] = np.inf
            return tokens

        def close(self):
            pass

    stage._engines[512] = Overflowing()
    first, second = stage.encode_pages([page(512), page(512)])
    assert isinstance(first, EngineError)
    assert "not finite" in str(first)
    assert isinstance(second, np.ndarray)


def test_every_mode_has_its_engines(stage):
    assert {side for mode in MODES.values() for side in mode.sides} == set(stage._engines)
