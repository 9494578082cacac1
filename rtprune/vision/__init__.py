"""The second stage: views and tiles in, each page's visual tokens out."""

from rtprune.vision.encoder import VisionEncoder
from rtprune.vision.engines import open_engine
from rtprune.vision.engines.base import VisionEngine
from rtprune.vision.sequence import token_sequence

__all__ = ["VisionEncoder", "VisionEngine", "open_engine", "token_sequence"]
