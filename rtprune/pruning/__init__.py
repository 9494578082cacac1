"""The third stage: RTPrune, visual tokens in, fewer out."""

from rtprune.pruning.prune import PruneResult, prune, prune_batch

__all__ = ["PruneResult", "prune", "prune_batch"]
