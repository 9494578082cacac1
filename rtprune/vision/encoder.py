"""Encodes the views and tiles of all pages that wait, one batch per input side, and lays the tokens out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from rtprune.errors import EngineError, InvalidInput, OcrError
from rtprune.modes import TILE_SIDE
from rtprune.vision.engines import open_engine
from rtprune.vision.engines.base import VisionEngine
from rtprune.vision.sequence import Tokens, token_sequence

if TYPE_CHECKING:
    from rtprune.manifest import Manifest
    from rtprune.settings import Settings

PageViews = tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, int]]
"""Global view (S, S, 3), tiles (n, 640, 640, 3) with n = 0 for none, and (columns, rows) of tiles."""


class VisionEncoder:
    """The engines of all input sides and what their tokens are laid out with.

    Args:
        engines: by input side in px.
        newline, separator: float32 (hidden,).
        max_batch: images of one side in one run.
    """

    def __init__(
        self, engines: Mapping[int, VisionEngine], *, newline: Tokens, separator: Tokens, max_batch: int
    ) -> None:
        self._engines = dict(engines)
        self._newline = newline
        self._separator = separator
        self._max_batch = max_batch

    @classmethod
    def open(cls, manifest: Manifest, settings: Settings) -> Self:
        """Open every engine that the manifest names. Raises EngineError."""
        newline, separator = load_visual_tokens(manifest)
        engines: dict[int, VisionEngine] = {}
        try:
            for entry in manifest.vision:
                engines[entry.side] = open_engine(manifest, entry, settings)
        except BaseException:
            for engine in engines.values():
                engine.close()
            raise
        return cls(engines, newline=newline, separator=separator, max_batch=settings.vision_max_batch)

    def warm_up(self) -> None:
        """Run every engine once, so that the first page pays for no allocation. Raises EngineError if one fails."""
        for side, engine in self._engines.items():
            engine.encode(np.zeros((1, side, side, 3), np.uint8))

    def encode_pages(self, pages: Sequence[PageViews]) -> list[Tokens | OcrError]:
        """Return each page's visual tokens, float32 (L, hidden), or the error that it gets instead.

        InvalidInput: no engine for a side, or a grid that isn't its tiles'. EngineError: tokens that are not finite, or
        an engine that failed, which all pages of that run get.
        """
        results: list[Tokens | OcrError | None] = [self._refuse(page) for page in pages]
        encoded: dict[tuple[int, int], Tokens] = {}  # (page, -1 for its global view or the tile's number)
        for side in self._engines:
            self._encode_side(side, pages, results, encoded)
        for number, (_, tiles, grid) in enumerate(pages):
            if results[number] is None:
                tile_tokens = [encoded[number, tile] for tile in range(len(tiles))]
                results[number] = token_sequence(
                    encoded[number, -1],
                    np.stack(tile_tokens)
                    if tile_tokens
                    else np.empty((0, 0, len(self._newline)), np.float32),
                    grid,
                    newline=self._newline,
                    separator=self._separator,
                )
        return [result for result in results if result is not None]

    def close(self) -> None:
        """Free every engine."""
        for engine in self._engines.values():
            engine.close()
        self._engines = {}

    def _refuse(self, page: PageViews) -> OcrError | None:
        view, tiles, (cols, rows) = page
        for side in {view.shape[0], *([TILE_SIDE] if len(tiles) else [])}:
            if side not in self._engines:
                return InvalidInput(f"There is no vision engine for {side} px; export that mode first.")
        if cols * rows != len(tiles):
            return InvalidInput(f"A grid of {cols} x {rows} tiles was announced with {len(tiles)} tiles.")
        return None

    def _encode_side(
        self,
        side: int,
        pages: Sequence[PageViews],
        results: list[Tokens | OcrError | None],
        encoded: dict[tuple[int, int], Tokens],
    ) -> None:
        images = [
            ((number, index), image)
            for number, (view, tiles, _) in enumerate(pages)
            if results[number] is None
            for index, image in enumerate([view, *tiles], start=-1)
            if image.shape[0] == side
        ]
        for start in range(0, len(images), self._max_batch):
            batch = images[start : start + self._max_batch]
            try:
                tokens = self._engines[side].encode(np.stack([image for _, image in batch]))
            except OcrError as error:
                for (number, _), _ in batch:
                    results[number] = error
                continue
            for (key, _), one in zip(batch, tokens, strict=True):
                if not np.isfinite(one).all():
                    results[key[0]] = EngineError("The vision encoder's tokens of this page are not finite.")
                encoded[key] = one


def load_visual_tokens(manifest: Manifest) -> tuple[Tokens, Tokens]:
    """Read `image_newline` and `view_seperator`, float32 (hidden,) each. Raises EngineError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = manifest.path(manifest.visual_tokens)
    try:
        tensors = load_file(path)
        newline, separator = tensors["image_newline"], tensors["view_seperator"]
    except (OSError, SafetensorError, KeyError) as error:
        raise EngineError(f"{path} doesn't hold image_newline and view_seperator: {error}.") from error
    if newline.shape != (manifest.hidden_size,) or separator.shape != (manifest.hidden_size,):
        raise EngineError(
            f"{path} holds tokens of another size than the {manifest.hidden_size} of the manifest."
        )
    return newline.astype(np.float32), separator.astype(np.float32)
