"""Starts, watches and stops Triton; the command line is `python -m server`."""
