"""Trains the reference checkpoint, and resumes: `python -m training.train WORK [--export DIR]`."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from training.batches import Batch, batches, cached_batches, feature_cache
from training.config import DECODER, INITIAL_DECODER
from training.curriculum import STAGES, Stage
from training.feature_cache import FeatureCache
from training.grow import grow
from training.losses import Trainee
from training.model import add_positions, load_checkpoint, new_model, save_checkpoint
from training.probes import fit_probes
from training.tokenizer import build_tokenizer

ATTENTION = {"vision_config": "eager", "text_config": "sdpa"}
"""Eager: with a bias that needs gradients, PyTorch's fused attention falls back to slower steps on CPU."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
REPORT_EVERY = 50
SAVE_EVERY_SECONDS = 180.0
FIRST_FILL = 4
"""Batches that are encoded before a cache gives its first."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Option numbers of mallopt(3)."""


def main() -> None:
    """Parse the arguments and train every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the state; an existing state is resumed")
    parser.add_argument(
        "--stages", nargs="*", choices=[s.name for s in STAGES], help="default: all, in order"
    )
    parser.add_argument("--start", type=Path, help="checkpoint whose weights a new state starts from")
    parser.add_argument("--export", type=Path, help="write the checkpoint here after the last stage")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    keep_memory()
    run = Run(arguments.work, arguments.seed, arguments.start)
    for stage in STAGES:
        if arguments.stages is None or stage.name in arguments.stages:
            run.train(stage)
    if arguments.export:
        save_checkpoint(run.trainee.model, arguments.export)


class Run:
    """The trainee, its optimizer and how far each stage has come, kept in one folder as safetensors and JSON."""

    def __init__(self, work: Path, seed: int, start: Path | None = None) -> None:
        self.work, self.seed = work, seed
        self.tokenizer = build_tokenizer()
        state = work / "state.json"
        grown = json.loads(state.read_text(encoding="utf-8"))["grown"] if state.exists() else False
        weights = None if start is None else load_checkpoint(start)[0].state_dict()
        if weights is not None:
            grown = weights["lm_head.weight"].shape[1] == DECODER["hidden_size"]
        model = new_model(seed, ATTENTION, DECODER if grown else INITIAL_DECODER)
        if weights is not None:
            model.load_state_dict(weights)
        self._set_model(model)
        self.done: dict[str, int] = {}
        self.pages = 0
        self.stop = False
        signal.signal(signal.SIGTERM, self._on_terminate)
        work.mkdir(parents=True, exist_ok=True)
        if state.exists():
            self._load()

    def _set_model(self, model: UnlimitedOcrForConditionalGeneration) -> None:
        model.set_experts_implementation("grouped_mm")
        self.trainee = Trainee(model.train())
        self.optimizer = make_optimizer(self.trainee)

    def grow(self) -> None:
        """Put the decoder that counts lines in the place of the initial one."""
        self._set_model(
            grow(self.trainee.model, fit_probes(self.trainee, self.seed, self.tokenizer), ATTENTION)
        )

    def _on_terminate(self, _number: int, _frame: object) -> None:
        self.stop = True

    def train(self, stage: Stage) -> None:
        """Go on with `stage` from the step that the state holds, to its end.

        Raises SystemExit(0) after SIGTERM, with the state saved.
        """
        if stage.positions and not self.done.get(stage.name):
            add_positions(self.trainee.model)
        if stage.grows and not self.trainee.grown:
            self.grow()
        stream = stage_batches(stage, self.seed, self.done.get(stage.name, 0), self)
        saved = reported = time.monotonic()
        sums: dict[str, list[float]] = defaultdict(list)
        for step in range(self.done.get(stage.name, 0), stage.steps):
            rate = rate_at(stage, step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = next(stream)
            for name, value in self._step(batch, stage).items():
                sums[name].append(value)
                if name in ("text_right", "coordinates"):
                    kind = "x".join(map(str, batch.spec.tiles or (batch.spec.side,)))
                    sums[f"{name} {kind}"].append(value)
            self.pages += len(batch.pixels)
            self.done[stage.name] = step + 1
            now = time.monotonic()
            if (step + 1) % REPORT_EVERY == 0:
                means = " ".join(f"{name} {np.mean(values):.3f}" for name, values in sums.items())
                print(
                    f"{stage.name} {step + 1}/{stage.steps} {self.pages} pages rate {rate:.1e} "
                    f"{(now - reported) / REPORT_EVERY:.2f} s/step {means}", flush=True,
                )  # fmt: skip
                reported = now
                sums.clear()
            if self.stop or now - saved > SAVE_EVERY_SECONDS:
                self.save()
                saved = now
            if self.stop:
                raise SystemExit(0)
        self.save()

    def _step(self, batch: Batch, stage: Stage) -> dict[str, float]:
        results = self.trainee(batch)
        weights = zip(
            ("text", "characters", "attention", "norms", "coordinates"), stage.loss_weights, strict=True
        )
        total = torch.stack([results[name] * weight for name, weight in weights if name in results]).sum()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: float(value.detach()) for name, value in results.items()}

    def save(self) -> None:
        """Write the state, each file whole or not at all."""
        names = [name for name, _ in self.trainee.named_parameters()]
        tensors = {f"weight.{name}": p.detach() for name, p in self.trainee.named_parameters()}
        for name, parameter in zip(names, self.trainee.parameters(), strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        state = {"grown": self.trainee.grown, "seed": self.seed, "done": self.done, "pages": self.pages}
        save_file(tensors, self.work / "state.safetensors.new")
        (self.work / "state.json.new").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        for name in ("state.safetensors", "state.json"):
            (self.work / f"{name}.new").replace(self.work / name)

    def _load(self) -> None:
        state = json.loads((self.work / "state.json").read_text(encoding="utf-8"))
        self.seed, self.done, self.pages = state["seed"], state["done"], state["pages"]
        tensors = load_file(self.work / "state.safetensors")
        with torch.no_grad():
            for name, parameter in self.trainee.named_parameters():
                if name.startswith("coordinate_heads.") and f"weight.{name}" not in tensors:
                    continue  # an aid that an older state lacks starts anew
                parameter.copy_(tensors[f"weight.{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                if f"step.{name}" in tensors:
                    self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in keys}


def keep_memory() -> None:
    """Tell glibc to keep freed blocks: otherwise a third of a step goes into page faults of fresh activations."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(option, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)


def make_optimizer(trainee: Trainee) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    trained = [p for p in trainee.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), fused=True)


def rate_at(stage: Stage, step: int) -> float:
    """Return the learning rate of a step: half a cosine, times a linear warm-up over the stage's first steps."""
    first, last = stage.rates
    rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return rate * min(1.0, (step + 1) / max(1, stage.warmup))


def stage_batches(stage: Stage, seed: int, start: int, run: Run) -> Iterator[Batch]:
    """Yield the stage's batches without end. The draw depends on seed, stage and first step, so no page comes twice."""
    order = [s.name for s in STAGES].index(stage.name)
    generator = np.random.default_rng([seed, order, start])
    weights = np.array([share.weight for share in stage.shares])
    waiting: dict[int, Iterator[Batch]] = {}
    caches: dict[int, FeatureCache] = {}
    while True:
        kind = int(generator.choice(len(weights), p=weights / weights.sum()))
        share = stage.shares[kind]
        batch = next(waiting.get(kind, iter(())), None)
        if batch is None:
            grounded = bool(generator.random() < share.grounded)
            if share.spec.fresh:
                cache = caches.get(kind) or feature_cache(
                    generator, share.spec, share.recipe, run.trainee.encode
                )
                for _ in range(1 if kind in caches else FIRST_FILL):
                    cache.extend()
                caches[kind] = cache
                rounds = round(1 / share.spec.fresh)
                waiting[kind] = cached_batches(cache, share.spec, grounded, run.tokenizer, rounds)
            else:
                waiting[kind] = batches(generator, share.spec, share.recipe, grounded, run.tokenizer)
            batch = next(waiting[kind])
        yield batch


if __name__ == "__main__":
    main()
