"""Client library and command line for the OCR server.

>>> from client import OcrClient
>>> with OcrClient("localhost:8001") as client:
...     print(client.ocr("page.png").markdown)
"""

from client.aio import AsyncOcrClient, AsyncOcrStream
from client.connection import Tls
from client.documents import Page, PageResult
from client.errors import (
    AccessDenied,
    ClientError,
    InvalidRequest,
    RequestCancelled,
    ServerFailed,
    ServerUnavailable,
    TimeLimitExceeded,
)
from client.geometry import Layout, TokenMap
from client.markdown import MarkdownStream, to_markdown
from client.ocr import OcrClient, OcrStream
from client.request import OcrOptions
from client.result import OcrResult, Region, Timings
from client.settings import ClientSettings
from client.tags import Box, RegionTag, TagParser

__all__ = [
    "AccessDenied",
    "AsyncOcrClient",
    "AsyncOcrStream",
    "Box",
    "ClientError",
    "ClientSettings",
    "InvalidRequest",
    "Layout",
    "MarkdownStream",
    "OcrClient",
    "OcrOptions",
    "OcrResult",
    "OcrStream",
    "Page",
    "PageResult",
    "Region",
    "RegionTag",
    "RequestCancelled",
    "ServerFailed",
    "ServerUnavailable",
    "TagParser",
    "TimeLimitExceeded",
    "Timings",
    "Tls",
    "TokenMap",
    "to_markdown",
]
