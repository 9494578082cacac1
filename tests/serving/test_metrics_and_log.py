"""Our own metrics beside Triton's, and one log line a page without its contents."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tritonclient.utils import InferenceServerException

from tests.serving import calls, metrics
from tests.serving.running import RunningServer
from tests.serving.test_modes import page

pytestmark = pytest.mark.serving


def settled(server: RunningServer) -> bool:
    """Whether every page that an earlier test left behind has been counted."""
    samples = metrics.read(server)
    ended = metrics.total(samples, "ocr_finished_total")
    counted = metrics.total(samples, "ocr_stage_requests_total", 'stage="decoder"')
    return metrics.total(samples, "ocr_decoder_running") == 0 and ended == counted


def test_a_page_is_counted(ocr_server: RunningServer) -> None:
    metrics.wait_for(lambda: settled(ocr_server), 20)
    before = metrics.read(ocr_server)
    answer = calls.unary(ocr_server, page(512, 512, "count me"), mode="tiny", max_tokens=8)
    seen, kept, output = (int(n) for n in answer.outputs["TOKENS"])

    def grown(name: str, label: str = "") -> float:
        return metrics.total(metrics.read(ocr_server), name, label) - metrics.total(before, name, label)

    metrics.wait_for(lambda: grown("ocr_finished_total", f'reason="{answer.reason}"') == 1, 5)
    assert grown("ocr_visual_tokens_total") == seen
    assert grown("ocr_visual_tokens_kept_total") == kept
    assert grown("ocr_output_tokens_total") == output
    metrics.wait_for(lambda: settled(ocr_server), 5)
    for stage in ("preprocess", "vision", "rtprune", "decoder"):
        assert grown("ocr_stage_requests_total", f'stage="{stage}"') == 1
        assert grown("ocr_stage_seconds_total", f'stage="{stage}"') > 0
    assert grown("nv_inference_request_success", 'model="decoder"') == 1
    samples = metrics.read(ocr_server)
    for gauge in ("ocr_decoder_running", "ocr_decoder_waiting", "ocr_kv_tokens_used", "ocr_kv_tokens_total"):
        assert gauge in samples
    assert samples["ocr_kv_tokens_total"] > 0


def buckets(samples: dict[str, float], name: str) -> list[float]:
    """A histogram's cumulative counts, smallest bound first, the count of everything last."""
    found = {key.split('"')[1]: n for key, n in samples.items() if key.startswith(f"{name}_bucket{{")}
    return [found[bound] for bound in sorted(found, key=float)] + [samples[f"{name}_count"]]


def test_a_page_is_in_the_histograms_of_its_seconds(ocr_server: RunningServer) -> None:
    metrics.wait_for(lambda: settled(ocr_server), 20)
    before = metrics.read(ocr_server)
    timings = calls.unary(ocr_server, page(512, 512, "time me"), mode="tiny", max_tokens=8).outputs["TIMINGS"]
    metrics.wait_for(lambda: settled(ocr_server), 5)
    after = metrics.read(ocr_server)
    for name, seconds in (("ocr_first_token_seconds", timings[4]), ("ocr_page_seconds", timings[6])):
        grown = [new - old for old, new in zip(buckets(before, name), buckets(after, name), strict=True)]
        assert grown == sorted(grown)
        assert grown[-2:] == [1, 1]  # le="+Inf" and the count
        assert after[f"{name}_sum"] - before[f"{name}_sum"] == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize("read", [calls.unary, calls.stream])
def test_an_error_is_counted_once_where_it_arose(
    ocr_server: RunningServer, read: Callable[..., calls.Answer]
) -> None:
    before = metrics.read(ocr_server)
    series = [name for name in before if name.startswith("ocr_errors_total{")]
    assert any('stage="vision"' in name for name in series), "there from the start"
    with pytest.raises(InferenceServerException, match="image"):
        read(ocr_server, b"no image at all")

    def grown(label: str) -> float:
        samples = metrics.read(ocr_server)
        return metrics.total(samples, "ocr_errors_total", label) - metrics.total(
            before, "ocr_errors_total", label
        )

    metrics.wait_for(lambda: grown('stage="preprocess",status="INVALID_ARGUMENT"') == 1, 5)
    assert grown("") == 1


def test_a_page_leaves_one_structured_line(ocr_server: RunningServer) -> None:
    mark = len(ocr_server.log())
    image = page(512, 512, "secret words")
    answer = calls.unary(ocr_server, image, request_id="log-7f3a", mode="tiny", max_tokens=8)
    metrics.wait_for(lambda: "log-7f3a" in ocr_server.log_since(mark), 5)
    lines = [line for line in ocr_server.log_since(mark).splitlines() if "log-7f3a" in line]
    assert len(lines) == 1
    facts = json.loads(lines[0][lines[0].index("{") :])
    assert facts["id"] == "log-7f3a"
    assert facts["finish"] == answer.reason
    assert facts["output_tokens"] == answer.outputs["TOKENS"][2]
    assert set(facts["seconds"]) >= {"preprocess", "vision", "rtprune", "decode", "total"}
    assert answer.text not in lines[0] or not answer.text
