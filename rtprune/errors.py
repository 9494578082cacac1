"""Errors that carry a sentence for the user; the endpoints turn each class into one status."""

from __future__ import annotations


class OcrError(Exception):
    """Base of every error whose message may be shown to a client as it is.

    relayed: it was answered by another stage, which counted it; this one only passes it on.
    """

    relayed = False


class InvalidInput(OcrError, ValueError):
    """The caller sent something that can't be read. One sentence, no traceback (INVALID_ARGUMENT)."""


class Unavailable(OcrError, RuntimeError):
    """The server is full or a part of it isn't there; the same request may work later (UNAVAILABLE)."""


class EngineError(OcrError, RuntimeError):
    """An engine failed on this request, or its files can't be used (INTERNAL)."""
