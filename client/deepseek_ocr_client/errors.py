"""Errors of the client: one sentence for the user, what to do next, and the exit code of the command line."""

from __future__ import annotations

from enum import IntEnum


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

    `str(error)` is one sentence; `advice` says what to do next, and may be empty.
    """

    exit_code = ExitCode.SERVER

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class InvalidRequest(ClientError, ValueError):
    """The input or an option can't be used; the same call fails again (INVALID_ARGUMENT)."""

    exit_code = ExitCode.INPUT


class ServerUnavailable(ClientError, ConnectionError):
    """No server answers, or it's full; the same call may work later (UNAVAILABLE).

    `answered` is true where the server itself said so, and false where nobody answered.
    """

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, message: str, advice: str = "", *, answered: bool = False) -> None:
        super().__init__(message, advice)
        self.answered = answered


class ServerFailed(ClientError, RuntimeError):
    """The server failed on this request, or answered against the contract (INTERNAL and the rest)."""

    exit_code = ExitCode.SERVER


class AccessDenied(ClientError, PermissionError):
    """The door in front of the server doesn't know the caller (UNAUTHENTICATED, PERMISSION_DENIED, 401, 403)."""

    exit_code = ExitCode.ACCESS


class TimeLimitExceeded(ClientError, TimeoutError):
    """The request didn't finish within its time limit (DEADLINE_EXCEEDED)."""

    exit_code = ExitCode.TIMEOUT


class RequestCancelled(ClientError):
    """The request was cancelled, by us or by the server (CANCELLED)."""

    exit_code = ExitCode.INTERRUPTED
