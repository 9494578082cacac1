"""The decoder service on a real engine: text, reasons, counts, limits and time, one last piece for each page."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rtprune.decoder.engines.base import (
    EngineStats,
    Output,
    OutputCallback,
    PromptTokens,
    RequestId,
    Sampling,
)
from rtprune.decoder.service import ActiveRequest, DecoderService, GenerationRequest, Piece
from rtprune.decoder.special_tokens import SpecialTokens
from rtprune.errors import EngineError, InvalidInput, Unavailable
from rtprune.settings import Settings
from tests.engines.calls import PATIENCE
from tests.engines.conftest import start_torch
from tests.rtprune.decoder.random_weights import TINY, random_tensors, write_checkpoint

CONTEXT = 1024
POISON = 300  # its embedding is not a number


@dataclass
class Metrics:
    """Keeps what the service reports."""

    states: list[EngineStats] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def state(self, stats: EngineStats) -> None:
        self.states.append(stats)

    def finished(self, piece: Piece) -> None:
        self.pieces.append(piece)


class Page:
    """A submitted page and its pieces."""

    def __init__(self, service: DecoderService, request: GenerationRequest) -> None:
        self.arriving: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self.pieces: list[Piece] = []
        self.threads: set[int] = set()
        self.active: ActiveRequest = service.submit(request, self._emit)

    def _emit(self, piece: Piece) -> None:
        self.threads.add(threading.get_ident())
        self.arriving.put(piece)

    def next(self) -> Piece:
        piece = self.arriving.get(timeout=PATIENCE)
        self.pieces.append(piece)
        return piece

    def end(self) -> Piece:
        while not (self.pieces and self.pieces[-1].finish_reason):
            self.next()
        return self.pieces[-1]

    @property
    def text(self) -> str:
        self.end()
        return "".join(piece.text for piece in self.pieces)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = random_tensors(TINY, 0)
    edit = {name: drawn[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    edit["model.embed_tokens.weight"][POISON] = float("nan")
    edit["lm_head.weight"][POISON] = 0  # never generated
    path = tmp_path_factory.mktemp("tiny")
    return write_checkpoint(path, seed=0, edit=edit, max_position_embeddings=CONTEXT)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def limits() -> dict[str, Any]:
    """Settings of a test that wants others."""
    return {}


@pytest.fixture
def service(
    folder: Path, small_tokenizer: Tokenizer, metrics: Metrics, limits: dict[str, Any]
) -> Iterator[DecoderService]:
    settings = Settings(max_waiting=3, **{"repetition_guard": False, **limits})
    service = DecoderService(start_torch(folder, max_running=2, kv_mib=4), small_tokenizer, settings, metrics)
    yield service
    service.close()


def request(seed: int = 0, **changes: Any) -> GenerationRequest:
    drawn = np.random.default_rng(seed)
    visual = drawn.normal(size=(6, 32)).astype(np.float32)
    ids = [0, *range(416, 422), *drawn.integers(3, 256, 5)]
    fields: dict[str, Any] = {
        "id": f"page-{seed}",
        "input_ids": PromptTokens(np.array(ids, np.int32)),
        "visual": visual,
        "positions": None,
        "max_tokens": 40,
        "ngram": 0,
        "window": 0,
        "deadline": None,
    }
    return GenerationRequest(**{**fields, **changes})


def settle(service: DecoderService) -> EngineStats:
    """Wait until nothing runs."""
    until = time.monotonic() + PATIENCE
    while (stats := service.stats()).running or stats.waiting:
        assert time.monotonic() < until
        time.sleep(0.01)
    return stats


def test_the_pieces_are_the_text_of_the_tokens(
    service: DecoderService, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[int] = []
    original = service.engine.submit

    def spy(
        prompt: PromptTokens,
        visual: NDArray[np.float32],
        positions: NDArray[np.integer[Any]] | None,
        sampling: Sampling,
        on_output: OutputCallback,
    ) -> RequestId:
        def both(output: Output) -> None:
            ids.extend(output.tokens)
            on_output(output)

        return original(prompt, visual, positions, sampling, both)

    monkeypatch.setattr(service.engine, "submit", spy)
    page = Page(service, request())
    last = page.end()
    assert page.text == small_tokenizer.decode(ids, skip_special_tokens=False)
    assert last.finish_reason == "length"
    assert last.output_tokens == len(ids) == 40
    assert last.text_length == len(page.text)
    assert len(page.pieces) > 5
    counts = [piece.output_tokens for piece in page.pieces]
    assert counts == sorted(counts)
    assert 0 <= last.queue_s <= last.first_token_s <= last.total_s
    assert len(page.threads) == 1
    assert threading.get_ident() not in page.threads


def test_the_end_token_stops_and_is_not_text(
    folder: Path, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A head whose row of the end id is far above the others."""
    head = random_tensors(TINY, 0)["lm_head.weight"]
    eos = SpecialTokens.of(small_tokenizer).eos
    head[eos] = 0
    bias = random_tensors(TINY, 0)["model.norm.weight"]
    sharp = head.clone()
    sharp[eos] = 50 * head[5] / bias
    folder = write_checkpoint(tmp_path, seed=0, edit={"lm_head.weight": sharp})
    service = DecoderService(start_torch(folder), small_tokenizer, Settings())
    pages = [Page(service, request(seed)) for seed in range(4)]
    reasons = [page.end().finish_reason for page in pages]
    assert "stop" in reasons
    for page in pages:
        if page.end().finish_reason == "stop":
            assert "end" not in page.text
            assert page.end().output_tokens < 40
    service.close()


def test_the_room_of_the_context_limits_the_output(service: DecoderService) -> None:
    page = Page(service, request(max_tokens=100_000))
    assert page.end().finish_reason == "length"
    assert page.end().output_tokens == CONTEXT - 12


def test_a_prompt_that_does_not_fit_is_refused(service: DecoderService) -> None:
    with pytest.raises(InvalidInput, match="no room for output"):
        Page(service, request(input_ids=PromptTokens(np.full(CONTEXT, 5, np.int32))))
    with pytest.raises(InvalidInput, match="no room for output"):
        Page(service, request(positions=np.arange(12) + CONTEXT - 12))
    with pytest.raises(InvalidInput, match="must have shape"):
        Page(service, request(visual=np.zeros((6, 8), np.float32)))
    assert Page(service, request()).end().finish_reason == "length"


def test_beyond_the_bounds_it_says_so_at_once_and_takes_more_later(
    service: DecoderService, metrics: Metrics
) -> None:
    pages = [Page(service, request(seed, max_tokens=1000)) for seed in range(5)]
    with pytest.raises(Unavailable, match="full: 5 pages"):
        Page(service, request(9))
    pages[0].next()
    assert service.stats().running <= 2
    pages[4].active.cancel()
    assert pages[4].end().finish_reason == "cancelled"
    sixth = Page(service, request(9, max_tokens=3))
    for page in pages[:4]:
        page.active.cancel()
    assert {page.end().finish_reason for page in pages} == {"cancelled"}
    assert sixth.end().finish_reason == "length"
    assert settle(service).kv_used == 0
    assert max(stats.waiting for stats in metrics.states) >= 2
    assert metrics.states[-1].running == metrics.states[-1].waiting == 0
    assert len(metrics.pieces) == 6


def test_time_limits_hold_while_decoding_and_while_waiting(service: DecoderService) -> None:
    running = [Page(service, request(seed, max_tokens=1000)) for seed in range(2)]
    now = time.monotonic()
    waiting = Page(service, request(5, deadline=now + 0.1))
    past = Page(service, request(6, deadline=now - 1))
    assert waiting.end().finish_reason == past.end().finish_reason == "timeout"
    assert waiting.end().output_tokens == 0
    assert waiting.end().queue_s == pytest.approx(waiting.end().total_s, abs=0.01)
    for page in running:
        page.active.cancel()
        page.end()
    limited = Page(service, request(7, max_tokens=1000, deadline=time.monotonic() + 0.2))
    assert limited.end().finish_reason == "timeout"
    assert limited.end().output_tokens > 0
    assert limited.end().text_length == len(limited.text)
    in_time = Page(service, request(8, max_tokens=2, deadline=time.monotonic() + 60))
    assert in_time.end().finish_reason == "length"


def test_cancel_after_the_end_and_twice_is_harmless(service: DecoderService) -> None:
    page = Page(service, request(max_tokens=2))
    page.end()
    page.active.cancel()
    page.active.cancel()
    assert Page(service, request(1, max_tokens=2)).end().finish_reason == "length"
    assert page.arriving.empty()


def test_a_loop_ends_with_repetition_and_says_what_to_keep(
    small_tokenizer: Tokenizer, metrics: Metrics, tmp_path: Path
) -> None:
    """Without attention and MLP the next token depends on the last one alone: it must go in circles."""
    drawn = random_tensors(TINY, 1)
    silent = {n: torch.zeros_like(t) for n, t in drawn.items() if "down_proj" in n or "o_proj" in n}
    folder = write_checkpoint(tmp_path, seed=1, edit=silent, max_position_embeddings=2048)
    service = DecoderService(start_torch(folder), small_tokenizer, Settings(repetition_chars=200), metrics)
    pages = [Page(service, request(seed, max_tokens=1000)) for seed in range(4)]
    for page in pages:
        last = page.end()
        assert last.finish_reason == "repetition"
        assert 0 <= last.text_length < len(page.text)
        assert last.output_tokens < 1000
        cut = page.text[last.text_length :]
        assert any(cut[n:] == cut[:-n] for n in range(1, len(cut) // 2))
    assert settle(service).kv_used == 0
    assert [piece.finish_reason for piece in metrics.pieces] == ["repetition"] * 4
    assert all(page.arriving.empty() for page in pages)
    service.close()


def test_not_finite_logits_end_the_page_with_a_sentence(service: DecoderService) -> None:
    ids = request().input_ids.ids.copy()
    ids[-2] = POISON
    bad = Page(service, request(input_ids=PromptTokens(ids)))
    good = Page(service, request(3))
    assert bad.end().finish_reason == "error"
    assert bad.end().error.endswith(".")
    assert good.end().finish_reason == "length"
    assert good.end().error == ""


def test_a_reader_that_raises_loses_its_page_and_no_other(service: DecoderService) -> None:
    calls = []

    def broken(piece: Piece) -> None:
        calls.append(piece)
        raise RuntimeError("gone")

    service.submit(request(max_tokens=1000), broken)
    assert Page(service, request(1)).end().finish_reason == "length"
    assert settle(service).kv_used == 0
    assert len([piece for piece in calls if piece.finish_reason]) <= 1


def test_warm_up_generates_and_says_when_it_can_not(
    service: DecoderService, metrics: Metrics, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    service.warm_up()
    assert service.stats().kv_used == 0
    assert not metrics.pieces
    norm = random_tensors(TINY, 0)["model.norm.weight"] * float("nan")
    broken = start_torch(write_checkpoint(tmp_path, seed=0, edit={"model.norm.weight": norm}))
    other = DecoderService(broken, small_tokenizer, Settings())
    with pytest.raises(EngineError, match="not finite"):
        other.warm_up()
    other.close()


def test_close_ends_every_page_with_an_error(service: DecoderService) -> None:
    pages = [Page(service, request(seed, max_tokens=1000)) for seed in range(4)]
    service.close()
    assert {page.end().finish_reason for page in pages} == {"error"}
    with pytest.raises(Unavailable, match="shutting down"):
        Page(service, request())


def test_every_page_gets_exactly_one_last_piece_under_pressure(service: DecoderService) -> None:
    """Many threads submit, cancel at random moments and run into deadlines."""
    answered: list[list[str]] = []
    lock = threading.Lock()

    def user(number: int) -> None:
        drawn = np.random.default_rng(number)
        for turn in range(12):
            limit = time.monotonic() + float(drawn.choice([0.002, 0.02, 60]))
            try:
                page = Page(
                    service,
                    request(
                        number, id=f"{number}-{turn}", max_tokens=int(drawn.integers(1, 40)), deadline=limit
                    ),
                )
            except Unavailable:
                continue
            if drawn.random() < 0.4:
                page.active.cancel()
            page.end()
            with lock:
                answered.append([piece.finish_reason for piece in page.pieces if piece.finish_reason])
                assert page.arriving.empty()

    threads = [threading.Thread(target=user, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert settle(service).kv_used == 0
    assert len(answered) > 8
    assert all(len(reasons) == 1 for reasons in answered)
    assert Page(service, request(1)).end().finish_reason == "length"
