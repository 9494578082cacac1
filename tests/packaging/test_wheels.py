"""The two distributions: what their wheels hold, what they bring into an empty environment, that they work there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import Parser
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {"rtprune": ROOT, "deepseek_ocr_client": ROOT / "client"}

pytestmark = [
    pytest.mark.slow("builds two wheels and fills two environments from the package index"),
    pytest.mark.timeout(600),
]


@dataclass(frozen=True)
class Installed:
    """A wheel, and the Python of an environment that holds it and what it asked for."""

    wheel: Path
    python: Path

    def run(self, code: str, *arguments: str) -> str:
        """Standard output of some Python, run away from the checkout."""
        line = [str(self.python), "-I", "-c", code, *arguments]
        done = subprocess.run(line, cwd=self.wheel.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def packages(self) -> set[str]:
        """Names of every installed distribution."""
        code = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
        return {name.lower().replace("_", "-") for name in json.loads(self.run(code))}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Installed]:
    """Builds a distribution's wheel and installs it into an empty environment, once a run."""

    @lru_cache
    def install(name: str) -> Installed:
        folder = tmp_path_factory.mktemp(name)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(PROJECTS[name])])
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=False)
        python = folder / "venv" / "bin" / "python"
        _run([*pip, "--python", str(python), "install", str(wheel)])
        return Installed(wheel, python)

    return install


def _run(line: list[str]) -> None:
    # Else pip takes a checkout that is on the path for an installed package.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_holds_its_own_typed_package_and_the_license(
    name: str, installed: Callable[[str], Installed]
) -> None:
    wheel = installed(name).wheel
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {each.split("/")[0] for each in names}
    assert tops == {name, *[top for top in tops if top.endswith(".dist-info")]}
    assert f"{name}/py.typed" in names
    assert any(each.endswith("/LICENSE") for each in names)
    assert wheel.stat().st_size < 300_000


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_asks_for_ranges(name: str, installed: Callable[[str], Installed]) -> None:
    requirements = _requirements(installed(name).wheel)
    assert requirements
    assert not [each for each in requirements if "==" in each.split(";")[0]]


def test_the_library_prunes_with_what_it_brings(installed: Callable[[str], Installed]) -> None:
    library = installed("rtprune")
    assert library.packages() == {"rtprune", "numpy", "array-api-compat"}
    example = re.findall(r"```python\n(.*?)```", (ROOT / "rtprune" / "README.md").read_text(), re.DOTALL)[0]
    assert library.run(example).split() == ["48", "of", "64"]


def test_the_client_is_light(installed: Callable[[str], Installed]) -> None:
    packages = installed("deepseek_ocr_client").packages()
    assert {"deepseek-ocr-client", "tritonclient", "pillow"} <= packages
    assert not packages & {"torch", "nvidia-pytriton", "opencv-python-headless", "rtprune", "transformers"}


def test_the_client_s_command_and_library_are_there(installed: Callable[[str], Installed]) -> None:
    client = installed("deepseek_ocr_client")
    line = [str(client.python.parent / "deepseek-ocr"), "ocr", "page.png", "--url", "localhost:1"]
    done = subprocess.run(line, cwd=client.wheel.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, "No server answers" in done.stderr) == (4, True), done.stderr
    assert "Traceback" not in done.stderr
    code = (
        "from importlib.resources import files; import deepseek_ocr_client as c; print(c.OcrClient.__name__, "
    )
    code += "[f.name for f in files('deepseek_ocr_client.show').iterdir() if f.name.endswith('.html')])"
    assert client.run(code).split() == ["OcrClient", "['page.html']"]
