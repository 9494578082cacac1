"""The load test: `python -m benchmarks.load_test` or `make load-test`."""
