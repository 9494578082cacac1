"""The modes of DeepSeek-OCR: what size of view each reads, and whether it cuts tiles."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 64  # px of an input that become one content token: patch 16, then 4 x 4 patches are compressed
TILE_SIDE = 640  # px of a gundam tile


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode.

    Attributes:
        name: what a request calls it.
        side: px of the square global view.
        tiles: whether a large page is cut into tiles beside the global view.
        pad: whether the page keeps its aspect and is padded, or is stretched to the square.
        prunes: whether dynamic pruning pays: where the retention is "auto", it is on in these modes alone.
    """

    name: str
    side: int
    tiles: bool
    pad: bool
    prunes: bool

    @property
    def sides(self) -> tuple[int, ...]:
        """Input sizes (px) that need a vision engine."""
        return (self.side, TILE_SIDE) if self.tiles else (self.side,)


# Sizes: the table "Resolution modes" of DeepSeek-OCR (arXiv 2510.18234, section 3.2.2). Where pruning pays: RTPrune's
# results on OmniDocBench (arXiv 2605.00392). Large 85.55 -> 85.10 and a prefill faster by 1.23; Base 84.83 -> 81.48 for
# 1.05; Tiny and Small lose 15 points.
MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("tiny", 512, tiles=False, pad=False, prunes=False),
        Mode("small", 640, tiles=False, pad=False, prunes=False),
        Mode("base", 1024, tiles=False, pad=True, prunes=False),
        Mode("large", 1280, tiles=False, pad=True, prunes=True),
        Mode("gundam", 1024, tiles=True, pad=True, prunes=True),
    )
}
