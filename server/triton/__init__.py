"""What the models need of Triton: tensors in and out, failures, metrics, calls, streams."""
