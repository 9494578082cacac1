"""Where a server is and how long to wait for it: addresses, TLS, time limits, backoff."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from deepseek_ocr_client.errors import InvalidRequest, ServerUnavailable
from deepseek_ocr_client.request import OcrOptions
from deepseek_ocr_client.settings import ClientSettings

_SCHEMES = {"grpc": (False, False), "grpcs": (False, True), "http": (True, False), "https": (True, True)}
_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]@?#]+)(?::(?P<port>[0-9]{1,5}))?/?")


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server: `address` is host:port; `http` says which protocol, `tls` whether and how it's encrypted."""

    address: str
    http: bool = False
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, tls: Tls | None = None, headers: Mapping[str, str] | None = None) -> Endpoint:
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


class Backoff:
    """How long to wait before the next attempt after UNAVAILABLE; gives up by count and by deadline.

    Call `delay(error)`, sleep for what it returns, and try again; it raises the error when it's time to stop.
    `deadline` is a time of `time.monotonic()`. With `patient`, a server that answers that it's full is asked
    again until the deadline, and only a server that doesn't answer is counted.
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


class Deadline:
    """The time limit of a request: over all its attempts, or with `patient` for each attempt anew."""

    def __init__(self, options: OcrOptions, settings: ClientSettings, *, patient: bool = False) -> None:
        self._options = options
        self._grace = settings.deadline_grace
        self._limit = options.time_limit or settings.timeout
        self.patient = patient
        self.end = time.monotonic() + (settings.max_wait if patient else self._limit or settings.max_wait)

    def left(self) -> tuple[OcrOptions, float]:
        """The options of an attempt that begins now, and the client's own deadline for it, in seconds."""
        seconds = max(self.end - time.monotonic(), 0.001)
        if not self._limit:
            return self._options, seconds
        if self.patient:
            seconds = self._limit
        return replace(self._options, time_limit=seconds), seconds + self._grace
