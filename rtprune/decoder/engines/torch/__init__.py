"""The PyTorch engine: continuous batching, chunked prefill, KV memory of fixed size."""
