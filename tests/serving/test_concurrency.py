"""Many clients at once: every page gets its own text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving import calls
from tests.serving.running import RunningServer
from tests.serving.test_modes import page

pytestmark = pytest.mark.serving
CLIENTS = 16


def test_sixteen_clients_get_their_own_answers(ocr_server: RunningServer) -> None:
    modes = ["tiny", "small", "base", "tiny"]
    pages = [
        (page(512 + 8 * i, 512, f"client {i} {'abcdefghijklmnop'[i] * (1 + i % 5)} {i * 37}"), modes[i % 4])
        for i in range(CLIENTS)
    ]

    def call(i: int) -> tuple[str, list[int], list[int]]:
        image, mode = pages[i]
        endpoint = calls.stream if i % 2 else calls.unary
        answer = endpoint(
            ocr_server, image, request_id=f"client-{i}", mode=mode, max_tokens=40, prompt=calls.FREE_OCR
        )
        return answer.text, list(answer.outputs["KEPT"]), list(answer.outputs["LAYOUT"])

    alone = [call(i) for i in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        together = list(threads.map(call, range(CLIENTS)))
    assert together == alone
    assert len({tuple(kept) + tuple(layout) for _, kept, layout in alone}) > CLIENTS // 2, "pages differ"
