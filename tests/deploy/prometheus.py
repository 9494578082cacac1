"""A real Prometheus under test: the project's own configuration, with a running server for its target."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.serving.running import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "deploy" / "observability" / "prometheus"
TARGET = "triton:8002"
POD = {"namespace": "ocr", "pod": "deepseek-ocr-0"}  # labels that a target gets in Kubernetes


class RunningPrometheus:
    """`prometheus` on a free port, with its data in `folder`."""

    def __init__(self, binary: str, folder: Path, target: str) -> None:
        config = folder / "config"
        shutil.copytree(FOLDER, config)
        path = config / "prometheus.yml"
        text = path.read_text()
        assert text.count(f'["{TARGET}"]') == 1
        labels = ", ".join(f"{name}: {value}" for name, value in POD.items())
        text = text.replace(f'["{TARGET}"]', f'["{target}"]\n        labels: {{{labels}}}')
        for interval in ("scrape_interval: 10s", "evaluation_interval: 10s", "scrape_timeout: 5s"):
            assert interval in text
            text = text.replace(interval, f"{interval.split(':')[0]}: 1s")
        path.write_text(text)
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        self.log_path = folder / "prometheus.log"
        line = [binary, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
        line += [f"--web.listen-address={self.url.removeprefix('http://')}"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of one answer of the HTTP API."""
        query = urllib.parse.urlencode(
            {name.replace("match", "match[]"): v for name, v in parameters.items()}
        )
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as page:  # noqa: S310
                answer = json.load(page)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant vector."""
        found = self.get("query", query=expression)
        assert found["resultType"] == "vector", expression
        return list(found["result"])

    def ready(self) -> bool:
        """Whether it serves: it listens, and answers 503, before its storage is open."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10):  # noqa: S310
                return True
        except (urllib.error.URLError, ConnectionError):  # an HTTPError is a URLError
            return False

    def wait_for(self, expression: str, seconds: float = 60.0) -> None:
        """Wait until it serves and an expression has a result."""
        deadline = time.monotonic() + seconds
        while not (self.ready() and self.query(expression)):
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, f"{expression}: nothing in {seconds} s"
            time.sleep(0.2)

    def stop(self) -> None:
        """End it and wait."""
        self.process.terminate()
        self.process.wait(30)
