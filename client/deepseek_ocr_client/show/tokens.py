"""Which parts of the page were kept: a mask a view, and how many tokens that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepseek_ocr_client.geometry import Rectangle
from deepseek_ocr_client.result import OcrResult


@dataclass(frozen=True, slots=True)
class View:
    """One view's tokens: `name` (tiles or global), content tokens in all and kept, areas of the pruned ones.

    Areas are page pixels; cells that show only padding are counted but have no area.
    """

    name: str
    total: int
    kept: int
    pruned: tuple[Rectangle, ...]

    @property
    def title(self) -> str:
        """`tiles: 412 of 600 content tokens kept`."""
        name = "tiles" if self.name == "tiles" else "global view"
        return f"{name}: {self.kept} of {self.total} content tokens kept"


def views_of(result: OcrResult) -> list[View]:
    """The views that the encoder saw, tiles first."""
    kept = {int(position) for position in result.kept}
    tokens = result.tokens
    found: dict[str, list[tuple[bool, Rectangle]]] = {}
    for position in range(result.layout.sequence_length):
        token = tokens.token(position)
        if token is not None:
            found.setdefault(token.view, []).append((position in kept, token.area))
    return [
        View(
            name,
            len(cells),
            sum(is_kept for is_kept, _ in cells),
            tuple(area for is_kept, area in cells if not is_kept and not area.empty),
        )
        for name, cells in found.items()
    ]


def pruned_mask(view: View, width: int, height: int, page: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """[height, width], true where a picture of the page shows a pruned token; `page` is its (width, height)."""
    mask = np.zeros((height, width), bool)
    across, down = width / page[0], height / page[1]
    for area in view.pruned:
        mask[
            round(area.top * down) : round(area.bottom * down),
            round(area.left * across) : round(area.right * across),
        ] = True
    return mask
