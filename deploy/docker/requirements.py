"""Prints the pinned requirements of this project's extras and dependency groups, so that images cache them.

`--lacking` leaves out what the Python that runs this has already, in whatever version: NVIDIA's container carries
packages that fit its TensorRT-LLM, and none of them may change. `--frozen FILE` writes the constraints for that:
the container's own versions, then this project's for everything else.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent


def canonical(requirement: str) -> str:
    """A requirement's package name, normalised as PEP 503 says."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement.strip(), maxsplit=1)[0]).lower()


def requirements(project: Path, constraints: Path, names: list[str]) -> list[str]:
    """The library's requirements and those of extras and groups, in the versions that are deployed.

    Raises:
        KeyError: a name that is neither an extra nor a group, or a package without a pin.
    """
    described = tomllib.loads(project.read_text(encoding="utf-8"))
    extras = described["project"]["optional-dependencies"] | described["dependency-groups"]
    wanted = [*described["project"]["dependencies"], *(each for name in names for each in extras[name])]
    pins = {canonical(pin): pin.partition("==")[2] for pin in pinned(constraints)}
    parts = [re.match(r"[\w.-]+(?:\[[^\]]*\])?", each) for each in wanted]
    spelled = [part[0] for part in parts if part]
    return list(dict.fromkeys(f"{name}=={pins[canonical(name)]}" for name in spelled))


def pinned(constraints: Path) -> list[str]:
    """The lines of a constraints file that pin a package."""
    lines = (line.strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def installed() -> dict[str, str]:
    """Every package that this Python can import, with its version."""
    return {
        canonical(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]
    }


def frozen(constraints: Path, present: dict[str, str]) -> list[str]:
    """Constraints that keep what is there and pin what is not."""
    missing = [line for line in pinned(constraints) if canonical(line) not in present]
    return sorted(f"{name}=={version}" for name, version in present.items()) + missing


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="extras and groups")
    parser.add_argument("--project", type=Path, default=HERE / "pyproject.toml")
    parser.add_argument("--constraints", type=Path, default=HERE / "constraints.txt")
    parser.add_argument("--lacking", action="store_true")
    parser.add_argument("--without", default="", help="packages to leave out, by comma")
    parser.add_argument("--frozen", type=Path)
    options = parser.parse_args(arguments)
    present = installed()
    left_out = {canonical(name) for name in options.without.split(",") if name}
    if options.lacking:
        left_out |= set(present)
    wanted = requirements(options.project, options.constraints, options.names)
    sys.stdout.writelines(f"{line}\n" for line in wanted if canonical(line) not in left_out)
    if options.frozen:
        options.frozen.write_text("\n".join(frozen(options.constraints, present)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
