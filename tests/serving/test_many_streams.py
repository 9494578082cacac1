"""A thousand pages over many streams at once: the server's processes last, and every page gets its own text."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from deepseek_ocr_client import AsyncOcrClient, ClientSettings, OcrOptions
from tests.serving import calls
from tests.serving.running import RunningServer
from tests.serving.test_modes import page

PAGES, STREAMS, DIFFERENT = 1500, 16, 8


@pytest.mark.long
@pytest.mark.serving
@pytest.mark.timeout(1200)
def test_the_servers_processes_last(ocr_server: RunningServer) -> None:
    images = [page(512, 512, f"page {i} {'abcdefgh'[i] * (2 + i)} {i * 37}") for i in range(DIFFERENT)]
    options = OcrOptions("tiny", calls.FREE_OCR, max_tokens=100)
    before = {process.pid for process in ocr_server.processes()}

    async def read_all() -> list[str]:
        settings = replace(ClientSettings(), retries=0)
        texts = [""] * PAGES
        async with AsyncOcrClient(ocr_server.grpc_url, settings=settings) as client:
            numbers = iter(range(PAGES))

            async def stream() -> None:
                for number in numbers:
                    texts[number] = (await client.read(images[number % DIFFERENT], options)).text

            await asyncio.gather(*(stream() for _ in range(STREAMS)))
        return texts

    texts = asyncio.run(read_all())
    assert {process.pid for process in ocr_server.processes()} == before
    assert texts == texts[:DIFFERENT] * (PAGES // DIFFERENT) + texts[: PAGES % DIFFERENT]
    assert len(set(texts[:DIFFERENT])) > 1
