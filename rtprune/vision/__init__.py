"""The vision stage: images in, each page's visual tokens out."""

from rtprune.vision.engines.base import VisionEngine, open_engine
from rtprune.vision.sequence import arrange
from rtprune.vision.stage import VisionStage

__all__ = ["VisionEngine", "VisionStage", "arrange", "open_engine"]
