"""Errors of the client: the tree, each with its exit code, and how a status becomes one of them."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of `deepseek-ocr`; they're part of the interface and don't change."""

    OK = 0
    PARTIAL = 1  # the run went through, but some pages or documents failed
    USAGE = 2  # argparse's own code for a wrong command line
    INPUT = 3  # an input can't be read, or the server refused it
    UNAVAILABLE = 4  # no server there, or it's full
    SERVER = 5  # the server failed on the request
    TIMEOUT = 6  # the time limit passed
    ACCESS = 7  # a proxy in front of the server wants a key, or another one
    INTERNAL = 70  # a bug in the client, as sysexits.h numbers it
    INTERRUPTED = 130  # Ctrl-C, as shells report it


class ClientError(Exception):
    """Base of everything the client raises on purpose.

    `str(error)` is one sentence; `advice` says what to do next, and may be empty; `status` is the one that the
    server or the connection gave: gRPC's word ("NOT_FOUND"), HTTP's number ("503"), or empty without one.
    """

    exit_code = ExitCode.SERVER

    def __init__(self, message: str, advice: str = "", *, status: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        self.status = status


class InvalidRequest(ClientError, ValueError):
    """The input or an option can't be used; the same call fails again (INVALID_ARGUMENT)."""

    exit_code = ExitCode.INPUT


class ServerUnavailable(ClientError, ConnectionError):
    """No server answers, or it's full; the same call may work later (UNAVAILABLE).

    `answered` is true where the server itself said so, and false where nobody answered.
    """

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, message: str, advice: str = "", *, status: str = "", answered: bool = False) -> None:
        super().__init__(message, advice, status=status)
        self.answered = answered


class ServerFailed(ClientError, RuntimeError):
    """The server failed on this request, or answered against the contract (INTERNAL and the rest)."""

    exit_code = ExitCode.SERVER


class AccessDenied(ClientError, PermissionError):
    """The proxy in front of the server doesn't know the caller (UNAUTHENTICATED, PERMISSION_DENIED, 401, 403)."""

    exit_code = ExitCode.ACCESS


class TimeLimitExceeded(ClientError, TimeoutError):
    """The request didn't finish within its time limit (DEADLINE_EXCEEDED)."""

    exit_code = ExitCode.TIMEOUT


class RequestCancelled(ClientError):
    """The request was cancelled, by us or by the server (CANCELLED)."""

    exit_code = ExitCode.INTERRUPTED


def unexpected(error: Exception) -> ClientError:
    """The error for what nobody thought of, where it may cost one page or document and not the run."""
    said = " ".join(str(error).split())[:200].rstrip(".")
    return ClientError(
        f"A bug in this program: {type(error).__name__}{': ' + said if said else ''}.", "Please report it."
    )


# HTTP has fewer words than gRPC: Triton answers 400 to every request that it finds wrong.
_STATUSES: dict[str, type[ClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "RESOURCE_EXHAUSTED": InvalidRequest,
    "400": InvalidRequest,
    "413": InvalidRequest,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "401": AccessDenied,
    "403": AccessDenied,
    "UNAVAILABLE": ServerUnavailable,
    "502": ServerUnavailable,
    "503": ServerUnavailable,
    "DEADLINE_EXCEEDED": TimeLimitExceeded,
    "499": TimeLimitExceeded,
    "504": TimeLimitExceeded,
    "CANCELLED": RequestCancelled,
    "NOT_FOUND": ServerUnavailable,
}

# Our server begins its sentences with their status, because Triton sends errors on a stream without one (it
# could close the stream with the status, if asked with a `triton_grpc_error` header; 24.10 crashes on that)
# and every error that a model gets from another model as INTERNAL. Ensembles put their names before it.
_SPELLED = re.compile(r"(?:in ensemble '[^']*', )*(?:(INVALID_ARGUMENT|UNAVAILABLE|INTERNAL): )?")

# The one sentence of Triton's own that has to be known: on a stream it has no status, over HTTP a 400.
_UNKNOWN_MODEL = re.compile(r"Request for unknown model\b")


# What Triton says, as INTERNAL or a plain 400, while a model or the server is ending or starting again.
_RESTARTING = re.compile(
    r"[Ss]tub process|is not (?:healthy|ready)|has no available versions|[Ss]erver is (?:stopping|exiting)|unload"
)


def triton_error(error: Any, server: object, *, connected: bool = False) -> ClientError:
    """The client's error for an InferenceServerException of tritonclient's or a gRPC error.

    `server` is what sentences call it. `connected`: whether the channel was up when it came; UNAVAILABLE over
    a channel that isn't is the connection's own word, and no server's.
    """
    if callable(getattr(error, "details", None)):
        said, given = error.details() or "", str(error.code())
    else:
        said, given = error.message() or "", error.status() or ""
    spelled = _SPELLED.match(said)
    word = given.rpartition(".")[2].upper()
    if spelled is not None:
        said, word = said[spelled.end() :], spelled[1] or word
        connected = connected or spelled[1] is not None
    said = " ".join(said.split())
    if word == "UNAVAILABLE" and not connected:
        return no_server(server)
    if _UNKNOWN_MODEL.match(said):
        word = "NOT_FOUND"
    elif spelled is not None and spelled[1] != "INVALID_ARGUMENT" and _RESTARTING.search(said):
        return ServerUnavailable(said, "Try again later.", status=word)
    return _of_status(word, said, server)


def no_server(server: object) -> ServerUnavailable:
    """The error for an address where nobody answers, or a connection that was lost."""
    return ServerUnavailable(
        f"No server answers at {server}.",
        "Start one, or give another address with --url or DEEPSEEK_OCR_URL.",
        status="UNAVAILABLE",
    )


def _of_status(word: str, said: str, server: object) -> ClientError:
    kind = _STATUSES.get(word, ServerFailed)
    if word == "NOT_FOUND":
        said, advice = f"The server at {server} doesn't serve this model: {said}", "Look at `status`."
    elif kind is TimeLimitExceeded:
        said = "The request didn't finish within its time limit."
        advice = "Give it more time with --timeout, or look with `status` whether the server is busy."
    elif kind is RequestCancelled:
        said, advice = "The request was cancelled.", ""
    elif kind is ServerUnavailable:
        advice = "" if "again" in said else "Try again later."
        return ServerUnavailable(said or "The server is busy.", advice, status=word, answered=True)
    elif kind is AccessDenied:
        said = said or f"{server} refused this caller."
        advice = "Give the key that its owner gave you: --header 'authorization=Bearer KEY', or headers= in Python."
    elif kind is InvalidRequest:
        said, advice = said or "The server refused the request.", ""
    else:
        said = said or "The server failed without saying why."
        advice = "The server's log says more, under the request's id."
    return kind(said, advice, status=word)
