"""Every default and limit of the client, with unit and reason; DEEPSEEK_OCR_* variables override them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from deepseek_ocr_client.errors import InvalidRequest

ENV_PREFIX = "DEEPSEEK_OCR_"
UNARY_MODEL = "deepseek_ocr"
STREAM_MODEL = "deepseek_ocr_stream"
MODES = ("tiny", "small", "base", "large", "gundam")

# Prompts by short names, as DeepSeek-OCR was trained with them.
PROMPTS = {
    "markdown": "<image>\n<|grounding|>Convert the document to markdown.",
    "free": "<image>\nFree OCR.",
    "ocr": "<image>\n<|grounding|>OCR this image.",
    "figure": "<image>\nParse the figure.",
    "describe": "<image>\nDescribe this image in detail.",
}


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of a client. A dataclass and not pydantic, so that the client stays light.

    `ClientSettings.from_env()` reads them from the environment: `DEEPSEEK_OCR_URL=...` overrides `url`.
    """

    # Where the server is
    url: str = "localhost:8001"  # gRPC; http://... or https://... asks for HTTP without streaming
    metrics_url: str = "http://localhost:8002/metrics"  # Prometheus text, for `status`

    # How long to wait, and how often to try
    timeout: float = 0.0  # seconds for a request, queueing included, sent as TIME_LIMIT; 0: the server's
    max_wait: float = 900.0  # seconds until we give up on a server that says nothing, where timeout is 0
    deadline_grace: float = 10.0  # seconds our own deadline lies after the server's, so that it can say why
    connect_timeout: float = 10.0  # seconds for health checks and other small calls
    retries: int = 5  # more attempts at a single page after UNAVAILABLE; nothing else is tried again
    retry_seconds: float = 300.0  # how long a batch asks a server that is gone; engines take minutes to load
    backoff: float = 0.5  # seconds before the first retry, doubled each time, with jitter
    backoff_max: float = 15.0  # seconds; a server that restarts needs about this long
    keepalive_time: float = 310.0  # seconds between pings while a request runs; finds a host that went away.
    # A Triton with its own defaults closes connections that ping more often than every 300 s.

    # What an image may be (the server checks again; these only fail earlier and cheaper)
    max_image_bytes: int = 20 * 2**20  # encoded; the server's own default
    max_image_pixels: int = 150_000_000  # that the header declares; the server's own default
    max_decoded_bytes: int = 256_000_000  # 1 a pixel in grey, 4 in colour; the server's own default

    # PDF pages
    dpi: float = 144.0  # twice PDF's 72: an A4 page becomes 1191 x 1684, more than any mode looks at
    min_dpi: float = 36.0  # below this, text of usual size can't be read: a page that needs less is refused
    max_page_pixels: int = 20_000_000  # a page with more is rendered at fewer dpi; 60 MB as RGB
    max_pages: int = 10_000  # pages of one document; a guard against broken page trees
    pdf_reopen_pages: int = 64  # PDFium caches fonts and images per document: start afresh this often

    # Batches
    concurrency: int = 8  # requests on their way at once; the server batches them
    figure_quality: int = 90  # JPEG quality of cropped figures

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> ClientSettings:
        """The defaults, with DEEPSEEK_OCR_* variables over them; `InvalidRequest` names a bad one."""
        env = os.environ if env is None else env
        found: dict[str, object] = {}
        for field in fields(cls):
            raw = env.get(ENV_PREFIX + field.name.upper())
            if raw is None:
                continue
            kind = {"str": str, "float": float, "int": int}[str(field.type)]
            try:
                found[field.name] = kind(raw)
            except ValueError:
                raise InvalidRequest(
                    f"{ENV_PREFIX}{field.name.upper()} must be a number, not {raw!r}."
                ) from None
        return replace(cls(), **found)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name in ("max_wait", "connect_timeout", "dpi", "min_dpi", "backoff_max", "keepalive_time"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"{name} must be more than 0, not {getattr(self, name)}.")
        for name in (
            "max_image_bytes",
            "max_image_pixels",
            "max_decoded_bytes",
            "max_page_pixels",
            "max_pages",
            "concurrency",
        ):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {getattr(self, name)}.")
        if min(self.timeout, self.retries, self.retry_seconds, self.backoff, self.deadline_grace) < 0:
            raise InvalidRequest(
                "timeout, retries, retry_seconds, backoff and deadline_grace must be 0 or more."
            )
        if not 1 <= self.figure_quality <= 95:
            raise InvalidRequest(f"figure_quality must be 1 to 95, not {self.figure_quality}.")
