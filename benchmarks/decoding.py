"""Measures the PyTorch decoder: `python -m benchmarks.decoding [--full-size]`, side by side in one run.

Without options: the reference checkpoint in our engine and in transformers' `generate`, in turns: tokens per second
of one request and of eight, and what a newcomer costs and waits. `--full-size`: DeepSeek-OCR's published shapes
with random BF16 weights (6 GB of disk and memory), prefill and decoding against the memory's bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import RESULTS, ROOT, in_turns, machine
from rtprune.decoder.engines.base import Engine, Output, PromptTokens, RequestId, Sampling
from rtprune.decoder.engines.torch.engine import default_threads, open_torch_engine
from rtprune.decoder.engines.torch.model import TorchDecoder

VISUAL, TEXT = 273, 12  # a base page without pruning, and its prompt
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@dataclass
class Run:
    """A request and when its tokens came, in seconds of one clock."""

    engine: Engine
    max_tokens: int
    seed: int = 0
    submitted: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    ended: queue.SimpleQueue[Output] = field(default_factory=queue.SimpleQueue)
    request_id: RequestId | None = None

    def submit(self) -> Run:
        """Hand it to the engine; it can't end before its last token."""
        ids, visual = prompt(self.engine.info.vocab_size, self.engine.info.hidden_size, self.seed)
        self.request_id = self.engine.submit(
            PromptTokens(ids), visual, None, Sampling(self.max_tokens, end_id=-1), self._on_output
        )
        return self

    def _on_output(self, output: Output) -> None:
        self.times += [time.perf_counter()] * len(output.tokens)
        if output.finish_reason:
            self.ended.put(output)

    def wait(self) -> Run:
        """Wait for its end. Raises RuntimeError where the engine ended it with an error."""
        output = self.ended.get()
        if output.finish_reason == "error":
            raise RuntimeError(output.error)
        return self

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.submitted


def prompt(vocabulary: int, hidden: int, seed: int) -> tuple[Any, Any]:
    """A page: BOS, visual tokens, text, as ids int32 (n,), and the visual tokens, float32 (VISUAL, hidden)."""
    drawn = np.random.default_rng(seed)
    ids = [0, *range(vocabulary, vocabulary + VISUAL), *drawn.integers(3, vocabulary, TEXT)]
    return np.array(ids, np.int32), drawn.normal(size=(VISUAL, hidden)).astype(np.float32)


def together(engine: Engine, count: int, tokens: int) -> tuple[float, list[Run]]:
    """Output tokens per second of `count` requests of `tokens` each submitted at once, prefill included."""
    begin = time.perf_counter()
    runs = [Run(engine, tokens, seed).submit() for seed in range(count)]
    for run in runs:
        run.wait()
    return count * tokens / (time.perf_counter() - begin), runs


def step_seconds(runs: list[Run]) -> float:
    """Median seconds between two tokens while all of them decode."""
    begin, end = max(run.times[0] for run in runs), min(run.times[-1] for run in runs)
    gaps = [
        b - a
        for run in runs
        for a, b in zip(run.times, run.times[1:], strict=False)
        if begin <= a and b <= end
    ]
    return statistics.median(gaps)


def newcomer(engine: Engine, running: int, tokens: int) -> dict[str, float]:
    """A request that comes while others decode: seconds to its first token, and of the pauses it makes for them."""
    others = [Run(engine, tokens, seed).submit() for seed in range(running)]
    while not all(len(run.times) > 20 for run in others):
        time.sleep(0.005)
    late = Run(engine, 10, 99).submit().wait()
    for run in others:
        engine.cancel(run.request_id)  # type: ignore[arg-type]
        run.wait()
    pauses = [
        b - a for run in others for a, b in zip(run.times, run.times[1:], strict=False) if b > late.submitted
    ]
    return {
        "first_token_s": late.first_token,
        "longest_pause_s": max(pauses),
        "median_pause_s": statistics.median(pauses),
    }


def reference(checkpoint: Path, rounds: int, tokens: int) -> dict[str, Any]:
    """The reference checkpoint, FP32, in our engine and in transformers, `tokens` output tokens a request.

    Raises EngineError for a checkpoint that our engine can't load.
    """
    from training.model import load_checkpoint

    model: Any = load_checkpoint(checkpoint)[0]
    engine = open_torch_engine(
        checkpoint, precision="fp32", device="cpu", max_running=16, kv_mib=256, prefill_chunk=256
    )
    vocabulary = engine.info.vocab_size
    threads = default_threads(TorchDecoder(checkpoint, torch.float32, torch.device("cpu")))
    torch.set_num_threads(threads)  # the same number for both

    def generate() -> float:
        ids, visual = prompt(vocabulary, engine.info.hidden_size, 0)
        embedded = model.get_input_embeddings()(
            torch.from_numpy(ids.astype(np.int64)).clamp(max=vocabulary - 1)
        )
        embedded[1 : 1 + VISUAL] = torch.from_numpy(visual)
        begin = time.perf_counter()
        with torch.inference_mode():
            mask = torch.ones((1, len(ids)), dtype=torch.int64)
            model.generate(
                inputs_embeds=embedded[None].detach(), attention_mask=mask, max_new_tokens=tokens, **GREEDY
            )
        return tokens / (time.perf_counter() - begin)

    steps: dict[int, list[float]] = {1: [], 8: [], 16: []}

    def ours(count: int) -> float:
        speed, runs = together(engine, count, tokens)
        steps[count].append(step_seconds(runs))
        return speed

    found = in_turns(
        rounds,
        transformers_one=generate,
        engine_one=lambda: ours(1),
        engine_eight=lambda: ours(8),
        engine_sixteen=lambda: ours(16),
    )
    alone = statistics.median(Run(engine, 2, n).submit().wait().first_token for n in range(5))
    loaded = newcomer(engine, 7, 4000)
    engine.close()
    return {
        "threads": threads,
        "output_tokens": tokens,
        "tokens_per_second": found,
        "milliseconds_a_step": {str(n): 1000 * statistics.median(times) for n, times in steps.items()},
        "one_request_against_generate": found["engine_one"] / found["transformers_one"],
        "eight_requests_against_generate": found["engine_eight"] / found["transformers_one"],
        "first_token_alone_s": alone,
        "newcomer_beside_seven": loaded,
    }


def write_full_size(folder: Path) -> int:
    """Write a decoder of the published shapes with random BF16 weights; returns the bytes of its tensors."""
    from export.family import DECODER_PREFIXES
    from export.hf_tensors import CONFIG
    from training.random_checkpoint import write_random_checkpoint

    _, parameters = write_random_checkpoint(folder, CONFIG, prefixes=DECODER_PREFIXES)
    return 2 * parameters


def bandwidth(threads: int) -> float:
    """Bytes per second at which this machine reads a gigabyte of BF16 weights in one matrix-vector product."""
    torch.set_num_threads(threads)
    weight = torch.ones((2**29 // 4096, 4096), dtype=torch.bfloat16)
    x = torch.ones((1, 4096), dtype=torch.bfloat16)
    seconds = []
    with torch.inference_mode():
        for _ in range(7):
            begin = time.perf_counter()
            torch.mm(x, weight.t())
            seconds.append(time.perf_counter() - begin)
    return weight.numel() * 2 / min(seconds)


def active_bytes(folder: Path) -> int:
    """Bytes of BF16 weights that one token must read: everything but the experts that it doesn't choose."""
    text = json.loads((folder / "config.json").read_text())["language_config"]
    hidden, layers, moe = text["hidden_size"], text["num_hidden_layers"], text["moe_intermediate_size"]
    experts = (text["num_experts_per_tok"] + text["n_shared_experts"]) * 3 * hidden * moe
    sparse = layers - text["first_k_dense_replace"]
    dense = text["first_k_dense_replace"] * 3 * hidden * text["intermediate_size"]
    router = text["n_routed_experts"] * hidden * 2  # FP32
    read: int = 2 * (
        layers * 4 * hidden**2 + sparse * (experts + router) + dense + text["vocab_size"] * hidden
    )
    return read


def full_size(folder: Path, device: str, tokens: int, requests: int) -> dict[str, Any]:
    """Prefill and decoding of one request and of several, `tokens` output tokens each; makes missing weights.

    Raises EngineError for weights that aren't of such a decoder, or no GPU though `device` is cuda.
    """
    if not (folder / "config.json").exists():
        print(f"writing 5.9 GB of random weights to {folder}", file=sys.stderr)
        write_full_size(folder)
    threads = len(os.sched_getaffinity(0))
    rate = bandwidth(threads) if device == "cpu" else 0.0
    engine = open_torch_engine(
        folder, precision="bf16", device=device, max_running=16, kv_mib=4096, prefill_chunk=512
    )
    first = Run(engine, 2).submit().wait().first_token  # reads the weights from disk
    prefill = statistics.median(Run(engine, 1, n).submit().wait().first_token for n in range(3))
    one, runs = together(engine, 1, tokens)
    several, many = together(engine, requests, tokens)
    engine.close()
    step, bytes_read = step_seconds(runs), active_bytes(folder)
    result: dict[str, Any] = {
        "threads": threads,
        "prompt_tokens": 1 + VISUAL + TEXT,
        "output_tokens": tokens,
        "first_request_s": first,
        "prefill_s": prefill,
        "tokens_per_second_decoding_one": 1 / step,
        "tokens_per_second_decoding_all": requests / step_seconds(many),
        "tokens_per_second_with_prefill": {"1": one, str(requests): several},
    }
    if rate:
        result["bandwidth_gb_s"] = rate / 1e9
        result["active_gb_a_token"] = bytes_read / 1e9
        result["bound_tokens_per_second"] = rate / bytes_read
        result["share_of_bound"] = bytes_read / rate / step
    return result


def conditions(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    facts = {
        "cpu": machine(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "training" / "checkpoint")
    parser.add_argument("--full-size", action="store_true", help="random weights of the published shapes")
    parser.add_argument("--folder", type=Path, help="keep the full-size weights here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--requests", type=int, default=4, help="concurrent requests at full size")
    parser.add_argument("--tokens", type=int, default=0, help="output tokens of a request")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    facts = conditions(arguments.device)
    if arguments.full_size:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.folder or Path(scratch)
            found = full_size(folder, arguments.device, arguments.tokens or 30, arguments.requests)
    else:
        found = reference(arguments.checkpoint, arguments.rounds, arguments.tokens or 200)
    name = "decoding_full_size" if arguments.full_size else "decoding"
    result = json.dumps({"machine": facts, **found}, indent=2)
    print(result)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}_{arguments.device}.json").write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
