"""ONNX Runtime's engine: what it opens, what it takes, and the sentence when it doesn't."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtprune.errors import EngineError
from rtprune.manifest import Manifest
from rtprune.settings import Settings
from rtprune.vision import open_engine
from rtprune.vision.engines.onnxruntime import OnnxRuntimeEngine
from training.config import DECODER


@pytest.fixture
def engine(random_engines: Path) -> Iterator[OnnxRuntimeEngine]:
    manifest = Manifest.load(random_engines)
    opened = open_engine(manifest, manifest.vision[0], Settings())
    assert isinstance(opened, OnnxRuntimeEngine)
    yield opened
    opened.close()


def test_a_batch_is_its_images_one_by_one(engine: OnnxRuntimeEngine) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 512, 512, 3), np.uint8)
    tokens = engine.encode(images)
    assert tokens.shape == (3, 64, DECODER["hidden_size"])
    assert tokens.dtype == np.float32
    assert np.array_equal(tokens[1:2], engine.encode(images[1:2]))
    assert not np.allclose(tokens[0], tokens[1])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 512, 512, 3), np.float32),
        np.zeros((1, 640, 640, 3), np.uint8),
        np.zeros((512, 512, 3), np.uint8),
        np.zeros((0, 512, 512, 3), np.uint8),
    ],
    ids=["floats", "another side", "no batch", "empty"],
)
def test_other_images_are_refused(engine: OnnxRuntimeEngine, images: NDArray[Any]) -> None:
    with pytest.raises(EngineError, match="512 px encoder takes uint8 images"):
        engine.encode(images)


def test_a_closed_engine_says_so(engine: OnnxRuntimeEngine) -> None:
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.encode(np.zeros((1, 512, 512, 3), np.uint8))


@pytest.mark.parametrize("name", ["vision-512.onnx", "vision.weights"])
def test_a_broken_file_is_named(random_engines: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(random_engines, tmp_path / "engines")
    manifest = Manifest.load(folder)
    path = folder / "vision" / name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EngineError, match="vision-512.onnx can't be opened by ONNX Runtime") as error:
        open_engine(manifest, manifest.vision[0], Settings())
    assert "\n" not in str(error.value)


def test_threads_come_from_the_settings(random_engines: Path) -> None:
    manifest = Manifest.load(random_engines)
    engine = open_engine(manifest, manifest.vision[0], Settings(vision_threads=3))
    assert isinstance(engine, OnnxRuntimeEngine)
    assert engine._session is not None
    assert engine._session.get_session_options().intra_op_num_threads == 3
    engine.close()


def test_weights_that_are_shared_give_the_same_tokens(
    random_engines: Path, engine: OnnxRuntimeEngine
) -> None:
    manifest = Manifest.load(random_engines)
    shared = open_engine(manifest, manifest.vision[0], Settings(vision_copied_mib=0))
    assert isinstance(shared, OnnxRuntimeEngine)
    assert shared._session is not None
    options = shared._session.get_session_options()
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    images = np.random.default_rng(1).integers(0, 256, (1, 512, 512, 3), np.uint8)
    np.testing.assert_allclose(shared.encode(images), engine.encode(images), rtol=0, atol=1e-4)
    shared.close()
