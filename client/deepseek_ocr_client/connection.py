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


class Attempts:
    """The attempts at one request: how long each may take, and how long to wait after UNAVAILABLE.

    The time limit holds over all attempts, the waits between them included, and there are `retries` more than one.
    With `patient` it holds for each attempt anew: a server that answers that it's full is asked again for `max_wait`
    seconds, and one that is gone for `retry_seconds`, for it may be starting again.
    """

    def __init__(self, options: OcrOptions, settings: ClientSettings, *, patient: bool = False) -> None:
        self._options = options
        self._patient = patient
        self._limit = options.time_limit or settings.timeout
        self._grace = settings.deadline_grace
        self._end = time.monotonic() + (settings.max_wait if patient else self._limit or settings.max_wait)
        self._retries = settings.retries
        self._gone_seconds = settings.retry_seconds
        self._gone_until: float | None = None  # when a server that is gone is given up
        self._wait = settings.backoff
        self._longest_wait = settings.backoff_max

    def begin(self) -> tuple[OcrOptions, float]:
        """The options of an attempt that begins now, and the client's own deadline for it, in seconds."""
        seconds = max(self._end - time.monotonic(), 0.001)
        if not self._limit:
            return self._options, seconds
        if self._patient:
            seconds = self._limit
        return replace(self._options, time_limit=seconds), seconds + self._grace

    def delay(self, error: ServerUnavailable) -> float:
        """Seconds to wait before the next attempt; raises `error` where there's to be none."""
        if not self._patient:
            if self._retries == 0:
                raise error
            self._retries -= 1
        # Jitter: clients that failed together don't come back together.
        wait = random.uniform(self._wait / 2, self._wait)  # noqa: S311 - spreads load, keeps no secret
        self._wait = min(self._wait * 2, self._longest_wait)
        then = time.monotonic() + wait
        if error.answered:
            self._gone_until = None
        elif self._patient:
            self._gone_until = self._gone_until or then - wait + self._gone_seconds
        if then >= min(self._end, self._gone_until or self._end):
            raise error
        return wait
