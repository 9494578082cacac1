"""RTPrune for DeepSeek-OCR: the computation of every stage, as plain functions over arrays."""

from rtprune.config import STRATEGIES, PruneConfig
from rtprune.layout import TokenLayout
from rtprune.preprocess.density import text_density
from rtprune.pruning.prune import PruneResult, prune, prune_batch

__all__ = ["STRATEGIES", "PruneConfig", "PruneResult", "TokenLayout", "prune", "prune_batch", "text_density"]
