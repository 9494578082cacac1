"""A stage's queue in Triton is full: both endpoints say UNAVAILABLE, it is counted, and the server goes on."""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from tritonclient.utils import InferenceServerException

from tests.serving import calls, metrics
from tests.serving.running import RunningServer
from tests.serving.test_modes import page

pytestmark = pytest.mark.serving

QUEUE = 64  # max_queue_size of preprocess
FLOOD = 160
STREAMS = 40
IMAGE = page(2480, 3508, "a page that takes a while to decode")


def outcome(server: RunningServer, endpoint: str) -> str:
    """The finish reason of a page, or the status of its error."""
    try:
        answer: calls.Answer = getattr(calls, endpoint)(server, IMAGE, mode="tiny", max_tokens=1)
        return answer.reason
    except InferenceServerException as error:
        return str(error.status() or re.findall(r"^\w+", error.message())[0])


def test_a_full_queue_refuses_pages_of_both_endpoints_as_unavailable(ocr_server: RunningServer) -> None:
    before = metrics.total(
        metrics.read(ocr_server), "ocr_errors_total", 'stage="stream",status="UNAVAILABLE"'
    )
    with ThreadPoolExecutor(FLOOD + STREAMS) as threads:
        flood = [threads.submit(outcome, ocr_server, "unary") for _ in range(FLOOD)]
        pending = 0.0
        while pending < QUEUE - 4 and not all(call.done() for call in flood):
            samples = metrics.read(ocr_server)
            pending = metrics.total(samples, "nv_inference_pending_request_count", 'model="preprocess"')
            time.sleep(0.02)
        streams = [threads.submit(outcome, ocr_server, "stream") for _ in range(STREAMS)]
        unary = Counter(call.result() for call in flood)
        streamed = Counter(call.result() for call in streams)
    assert pending >= QUEUE - 4
    assert set(unary) == {"length", "StatusCode.UNAVAILABLE"}
    assert set(streamed) <= {"length", "UNAVAILABLE"}
    assert streamed["UNAVAILABLE"]
    after = metrics.total(metrics.read(ocr_server), "ocr_errors_total", 'stage="stream",status="UNAVAILABLE"')
    assert after - before == streamed["UNAVAILABLE"]
    assert calls.unary(ocr_server, page(512, 512, "on we go"), mode="tiny", max_tokens=4).reason
