"""trtllm-build's argument parser, rebuilt from the description of its options in data/trtllm_build_options.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

OPTIONS = json.loads((Path(__file__).parent / "data" / "trtllm_build_options.json").read_text())


def described_parser() -> argparse.ArgumentParser:
    """trtllm-build's parser, rebuilt from its description."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name, option in OPTIONS["options"].items():
        names = [f"--{n}" for n in (name, *option.get("aliases", ()))]
        if option["type"] == "flag":
            parser.add_argument(*names, action="store_true")
        else:
            kind = {"int": int, "str": str}[option["type"]]
            parser.add_argument(*names, type=kind, choices=option.get("choices"), nargs=option.get("nargs"))
    return parser
