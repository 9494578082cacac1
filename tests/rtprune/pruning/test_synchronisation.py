"""Nothing is read back from a tensor's device before the kept count is needed; importing stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rtprune import PruneConfig, TokenLayout
from rtprune.preprocess.density import _count_edges_of_tensor
from rtprune.pruning.prune import _keep_and_merge
from rtprune.pruning.retention import compare, read_similarities
from rtprune.pruning.selection import select, staying
from tests.rtprune.pruning.test_pruning import page

# Operators whose result, or whose result's shape, the host must know.
WAITING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "unique2", "is_nonzero"}


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects those of the operators that run which make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = 0
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        name = func.__name__.split(".")[0]
        indices = args[1] if name in {"index", "index_put", "index_put_", "_index_put_impl_"} else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in WAITING or by_mask:
            self.waited.append(name)
        return func(*args, **kwargs or {})


def test_similarities_are_queued_without_waiting() -> None:
    layouts = [TokenLayout.of("tiny"), TokenLayout.of("gundam", tile_grid=(1, 2))]
    tokens = [torch.from_numpy(page(layout, 1)) for layout in layouts]
    with Operators() as operators:
        compared = [compare(X, layout) for X, layout in zip(tokens, layouts, strict=True)]
    assert operators.seen > 10
    assert operators.waited == []
    pages = [one for one, _ in read_similarities(compared)]
    with Operators() as operators:
        kept = [select(one, 40, PruneConfig()) for one in pages]
        stays = [staying(one, K) for one, K in zip(pages, kept, strict=True)]
    assert operators.seen > 10
    assert operators.waited == []
    with Operators() as operators:
        for one, K, stay in zip(pages, kept, stays, strict=True):
            _keep_and_merge(one, K, stay, PruneConfig(tolerance=0.0))
    assert operators.waited == ["nonzero"] * 2  # how many newlines are left


def test_edges_are_counted_without_waiting() -> None:
    view = torch.zeros((128, 128, 3), dtype=torch.uint8)
    with Operators() as operators:
        _count_edges_of_tensor(view, (2, 2), 0.2, "zero")
    assert operators.seen > 10
    assert operators.waited == []


def test_importing_brings_numpy_alone() -> None:
    heavy = ["torch", "cv2", "ot", "PIL", "transformers", "pydantic", "matplotlib", "scipy"]
    code = f"import rtprune, sys, json; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
