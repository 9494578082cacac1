"""The description of TensorRT-LLM's executor bindings, and the type stubs that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DESCRIPTION: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "executor_bindings.json").read_text(encoding="utf-8")
)
HEAD = """
import datetime
import os
from collections.abc import Callable
from typing import ClassVar, overload

import torch
"""


def names() -> set[str]:
    """Every name that the bindings have: classes, arguments, attributes, methods, values."""
    found = set()
    for name, described in DESCRIPTION["classes"].items():
        found |= {
            name,
            *described.get("attributes", {}),
            *described.get("methods", {}),
            *described.get("values", ()),
        }
        found |= {argument["name"] for argument in described.get("init") or ()}
        for overloads in described.get("methods", {}).values():
            found |= {argument["name"] for each in overloads for argument in each["args"]}
    return found


def write_stubs(folder: Path) -> None:
    """Write `tensorrt_llm.bindings.executor` as stubs, for a type checker."""
    package = folder / "tensorrt_llm" / "bindings"
    package.mkdir(parents=True)
    (package.parent / "__init__.pyi").touch()
    (package / "__init__.pyi").touch()
    lines = [HEAD]
    lines += [f"{name} = {alias['type']}" for name, alias in DESCRIPTION["callables"].items()]
    for name, described in DESCRIPTION["classes"].items():
        lines.append(f"class {name}:")
        # A value of the enumeration is an instance of it, as with nanobind's enum_.
        lines += [f"    {value}: ClassVar[{name}]" for value in described.get("values", ())]
        lines += [f"    {attribute}: {kind}" for attribute, kind in described.get("attributes", {}).items()]
        if described.get("init") is not None:
            lines.append(f"    def __init__({_signature(described['init'])}) -> None: ...")
        for method, overloads in described.get("methods", {}).items():
            for each in overloads:
                if len(overloads) > 1:
                    lines.append("    @overload")
                lines.append(f"    def {method}({_signature(each['args'])}) -> {each['returns']}: ...")
        lines.append("    ...")
    (package / "executor.pyi").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _signature(arguments: list[dict[str, Any]]) -> str:
    parts, keyword_only = ["self"], False
    for argument in arguments:
        if argument["keyword_only"] and not keyword_only:
            keyword_only = True
            parts.append("*")
        default = " = ..." if "default" in argument else ""
        parts.append(f"{argument['name']}: {argument['type']}{default}")
    return ", ".join(parts)
