"""Everything Triton-specific that is not a model: tensor adapter, metrics, launcher."""
