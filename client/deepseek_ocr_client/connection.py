"""Where a server is and how its failures read: addresses, TLS, statuses -> errors, backoff."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepseek_ocr_client.errors import (
    AccessDenied,
    ClientError,
    InvalidRequest,
    RequestCancelled,
    ServerFailed,
    ServerUnavailable,
    TimeLimitExceeded,
)
from deepseek_ocr_client.settings import ClientSettings

_SCHEMES = {"grpc": (False, False), "grpcs": (False, True), "http": (True, False), "https": (True, True)}
_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]@?#]+)(?::(?P<port>[0-9]{1,5}))?/?")

_SPELLED = re.compile(r"(?:in ensemble '[^']*', )*(?:(INVALID_ARGUMENT|UNAVAILABLE|INTERNAL): )?")

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
}


@dataclass(frozen=True, slots=True)
class Tls:
    """Files (PEM) for an encrypted connection; all None: the system's certificate authorities."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.ca, self.certificate, self.key):
            if path is not None and not Path(path).is_file():
                raise InvalidRequest(f"There is no TLS file {path}.")
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("A client certificate needs its key, and a key its certificate.")

    @property
    def paths(self) -> tuple[str | None, str | None, str | None]:
        """(ca, certificate, key) as strings."""
        ca, certificate, key = (
            None if path is None else str(path) for path in (self.ca, self.certificate, self.key)
        )
        return ca, certificate, key


@dataclass(frozen=True, slots=True)
class Target:
    """A server: `address` is host:port; `http` says which protocol, `tls` whether and how it's encrypted."""

    address: str
    http: bool = False
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, tls: Tls | None = None, headers: Mapping[str, str] | None = None) -> Target:
        """From `host:port`, `grpc://`, `grpcs://`, `http://` or `https://`; no scheme is gRPC.

        Giving `tls` encrypts a gRPC address without a scheme too.
        """
        scheme, _, rest = url.rpartition("://")
        scheme = scheme.lower() or ("grpcs" if tls else "grpc")
        match = _ADDRESS.fullmatch(rest)
        if scheme not in _SCHEMES or match is None or int(match["port"] or 1) not in range(1, 65536):
            raise InvalidRequest(
                f"{url!r} is no server address.",
                "Write host:port, grpc://..., grpcs://..., http://... or https://...",
            )
        http, encrypted = _SCHEMES[scheme]
        if tls and not encrypted:
            raise InvalidRequest(
                f"{url} isn't encrypted, but TLS files were given.", "Use grpcs:// or https://."
            )
        checked = {str(name).lower(): str(value) for name, value in (headers or {}).items()}
        for name, value in checked.items():
            if not re.fullmatch(r"[a-z0-9_.\-]+", name) or any(c in value for c in "\r\n\0"):
                raise InvalidRequest(f"{name!r} is no valid header.")
        return cls(
            f"{match['host']}:{match['port'] or _DEFAULT_PORTS[scheme]}",
            http,
            (tls or Tls()) if encrypted else None,
            checked,
        )

    def __str__(self) -> str:
        scheme = ("http" if self.http else "grpc") + ("s" if self.tls else "")
        return f"{scheme}://{self.address}"


def to_client_error(message: str | None, status: str | None, target: Target) -> ClientError:
    """The error class and the sentence for a failure that Triton or gRPC reports."""
    word = (status or "").rpartition(".")[2].upper()
    said = " ".join((message or "").split())
    if word == "UNAVAILABLE" and _nobody_there(said):
        return ServerUnavailable(
            f"No server answers at {target}.",
            "Start one, or give another address with --url or DEEPSEEK_OCR_URL.",
        )
    if word == "NOT_FOUND" or "unknown model" in said:
        return ServerUnavailable(
            f"The server at {target} doesn't serve this model: {said}", "Look at `status`."
        )
    kind = _STATUSES.get(word, ServerFailed)
    if kind is TimeLimitExceeded:
        return TimeLimitExceeded(
            "The request didn't finish within its time limit.",
            "Give it more time with --timeout, or look with `status` whether the server is busy.",
        )
    if kind is RequestCancelled:
        return RequestCancelled("The request was cancelled.")
    if kind is ServerUnavailable:
        advice = "" if "again" in said else "Try again later."
        return ServerUnavailable(said or "The server is busy.", advice, answered=True)
    if kind is AccessDenied:
        return AccessDenied(
            said or f"{target} refused this caller.",
            "Give the key that its owner gave you: --header 'authorization=Bearer KEY', or headers= in Python.",
        )
    if kind is InvalidRequest:
        return InvalidRequest(said or "The server refused the request.")
    advice = "The server's log says more, under the request's id."
    return ServerFailed(said or "The server failed without saying why.", advice)


def _nobody_there(message: str) -> bool:
    signs = ("failed to connect", "connection refused", "resolv", "resolution", "lookup", "connect:")
    lost = ("socket closed", "connection reset", "recvmsg", "goaway", "handshak", "broken pipe", "rst_stream")
    return any(sign in message.lower() for sign in signs + lost)


def triton_error(error: Any, target: Target) -> ClientError:
    """The same, from an InferenceServerException or a gRPC error.

    An error on a stream has no status: our server spells it out before the sentence. (Triton could close
    the stream with the status, if asked with a `triton_grpc_error` header; 24.10 crashes on that.) Where
    there is a status, the spelled one and the names of the ensembles are taken off the sentence too.
    """
    if callable(getattr(error, "message", None)):
        message = error.message() or ""
        spelled = _SPELLED.match(message)
        if spelled is not None:
            message = message[spelled.end() :]
        return to_client_error(message, error.status() or (spelled and spelled[1]), target)
    if callable(getattr(error, "details", None)):
        return to_client_error(error.details(), str(error.code()), target)
    return to_client_error(str(error), None, target)


class Backoff:
    """How long to wait before the next attempt after UNAVAILABLE; gives up by count and by deadline.

    Sync and async callers sleep differently, so they call `delay(error)`, sleep for what it returns, and try
    again; it raises the error when it's time to stop. With `patient`, a server that answers that it's full
    is asked again until the deadline, and only a server that doesn't answer is counted.
    """

    def __init__(self, settings: ClientSettings, deadline: float, *, patient: bool = False) -> None:
        self._deadline = deadline
        self._patient = patient
        self._left = settings.retries
        self._wait = settings.backoff
        self._longest = settings.backoff_max

    def delay(self, error: ServerUnavailable) -> float:
        """Seconds to wait before the next attempt; raises `error` when there's none left."""
        if not (self._patient and error.answered):
            if self._left == 0:
                raise error
            self._left -= 1
        # Jitter: clients that failed together don't come back together.
        wait = random.uniform(self._wait / 2, self._wait)  # noqa: S311 - spreads load, keeps no secret
        self._wait = min(self._wait * 2, self._longest)
        if time.monotonic() + wait >= self._deadline:
            raise error
        return wait
