"""Client library and command line for the OCR server.

>>> from deepseek_ocr_client import OcrClient
>>> with OcrClient("localhost:8001") as client:
...     print(client.ocr("page.png").markdown)
"""

from deepseek_ocr_client.aio import AsyncOcrClient, AsyncOcrStream
from deepseek_ocr_client.connection import Tls
from deepseek_ocr_client.errors import (
    AccessDenied,
    ClientError,
    InvalidRequest,
    RequestCancelled,
    ServerFailed,
    ServerUnavailable,
    TimeLimitExceeded,
)
from deepseek_ocr_client.geometry import Layout, TokenMap
from deepseek_ocr_client.markdown import MarkdownStream, to_markdown
from deepseek_ocr_client.ocr import OcrClient, OcrStream
from deepseek_ocr_client.pages import Page, PageResult
from deepseek_ocr_client.request import OcrOptions, RequestOptions
from deepseek_ocr_client.result import OcrResult, Region, Timings
from deepseek_ocr_client.settings import ClientSettings
from deepseek_ocr_client.tags import Box, RegionTag, TagParser

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
    "RequestOptions",
    "ServerFailed",
    "ServerUnavailable",
    "TagParser",
    "TimeLimitExceeded",
    "Timings",
    "Tls",
    "TokenMap",
    "to_markdown",
]
