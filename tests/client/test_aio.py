"""`AsyncOcrClient` against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deepseek_ocr_client import (
    AsyncOcrClient,
    ClientSettings,
    InvalidRequest,
    OcrClient,
    OcrOptions,
    ServerUnavailable,
)
from tests.client.conftest import LONG, SHORT
from tests.client.pdf_files import text_pages
from tests.client.test_ocr import cancelled
from tests.serving import metrics
from tests.serving.running import RunningServer

pytestmark = pytest.mark.serving


def test_the_same_as_the_synchronous_client(url: str, client: OcrClient, page: Path) -> None:
    expected = client.ocr(page, **SHORT)

    async def main() -> None:
        async with AsyncOcrClient(url) as other:
            for result in await asyncio.gather(*(other.ocr(page, **SHORT) for _ in range(4))):
                assert (result.text, result.kept.tolist()) == (expected.text, expected.kept.tolist())

    asyncio.run(main())


def test_a_stream(ocr_server: RunningServer, client: OcrClient, page: Path) -> None:
    expected = client.ocr(page, mode="tiny", max_tokens=60)

    async def main() -> None:
        async with AsyncOcrClient(ocr_server.grpc_url) as other:
            async with await other.stream(page, mode="tiny", max_tokens=60) as stream:
                pieces = [piece async for piece in stream]
            assert "".join(pieces)[: len(expected.text)] == stream.result.text == expected.text
            async with await other.stream(page, mode="tiny", max_tokens=60) as stream:
                assert "".join([piece async for piece in stream.markdown()])

    asyncio.run(main())


async def leave(client: AsyncOcrClient, page: Path, server: RunningServer) -> None:
    async with await client.stream(page, **LONG) as stream:
        async for _ in stream:
            break


def pruned(server: RunningServer) -> float:
    """Pages that came as far as the decoder."""
    return metrics.total(metrics.read(server), "ocr_stage_requests_total", 'stage="rtprune"')


async def cancel_task(client: AsyncOcrClient, page: Path, server: RunningServer) -> None:
    before = pruned(server)

    async def read() -> None:
        await client.ocr(page, **LONG)

    task = asyncio.create_task(read())
    await asyncio.to_thread(metrics.wait_for, lambda: pruned(server) > before, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", [leave, cancel_task])
def test_a_cancel_reaches_the_server(
    endless_server: RunningServer,
    page: Path,
    long_page: Path,
    how: Callable[[AsyncOcrClient, Path, RunningServer], Awaitable[None]],
) -> None:
    before = cancelled(endless_server)

    async def main() -> None:
        async with AsyncOcrClient(endless_server.grpc_url) as client:
            await client.ocr(page, **SHORT)
            await how(client, long_page, endless_server)

    asyncio.run(main())
    metrics.wait_for(lambda: cancelled(endless_server) == before + 1, 30)


def test_errors(url: str, page: Path) -> None:
    async def main() -> None:
        async with AsyncOcrClient(url) as client:
            with pytest.raises(InvalidRequest, match="MODE must be"):
                await client.ocr(page, mode="giant")
            await client.check()
            if url.startswith("http"):
                with pytest.raises(InvalidRequest, match="gRPC"):
                    await (await client.stream(page)).__anext__()
        nowhere = url.partition("://")[0] + "://127.0.0.1:1"
        async with AsyncOcrClient(nowhere, settings=ClientSettings(retries=0)) as client:
            with pytest.raises(ServerUnavailable, match="No server answers"):
                await client.ocr(page)

    asyncio.run(main())


def test_documents_come_in_order(ocr_server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(text_pages(5))

    async def main() -> None:
        async with AsyncOcrClient(ocr_server.grpc_url) as client:
            options = OcrOptions(mode="tiny", max_tokens=4)
            numbers = [
                result.number
                async for result in client.ocr_document(path, options=options, concurrency=3)
                if result.result is not None
            ]
            assert numbers == [1, 2, 3, 4, 5]

    asyncio.run(main())
