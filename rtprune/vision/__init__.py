"""The vision stage: images in, each page's visual tokens out."""

from rtprune.vision.arrange import arrange
from rtprune.vision.engine import VisionEngine, open_engine
from rtprune.vision.stage import VisionStage

__all__ = ["VisionEngine", "VisionStage", "arrange", "open_engine"]
