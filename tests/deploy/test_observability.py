"""Prometheus' configuration and alerts and Grafana's dashboard, against the real server and a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.prometheus import FOLDER, POD, ROOT, TARGET, RunningPrometheus
from tests.serving import calls, metrics
from tests.serving.running import RunningServer
from tests.serving.test_modes import page

GRAFANA = ROOT / "deploy" / "observability" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "ocr.json"
ADAPTER = ROOT / "deploy" / "kubernetes" / "prometheus-adapter" / "values.yaml"
SELECTOR = re.compile(r"\b((?:ocr|nv)_\w+|up|ALERTS)\b(\{[^}]*\})?")
GPU = "nv_gpu_"  # Triton exports these only where there is a GPU


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(FOLDER / "alerts.yml")["groups"] for rule in group["rules"]]


def mounts(service: str) -> list[str]:
    """The volumes of a compose service: source:target:options."""
    found: list[str] = load_yaml(ROOT / "docker-compose.yml")["services"][service]["volumes"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def plain(expression: str) -> str:
    """A panel's expression with Grafana's variables filled in."""
    filled = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
    assert "$" not in filled
    return filled


def dashboard_expressions() -> list[str]:
    return [plain(target["expr"]) for panel in panels() for target in panel.get("targets", [])]


def selectors(expression: str) -> set[str]:
    found = {name + labels for name, labels in SELECTOR.findall(expression)}
    assert found, expression
    return found


@pytest.fixture(scope="module")
def prometheus(
    ocr_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningPrometheus]:
    """A Prometheus that scrapes the server every second, and has seen it read pages."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    target = f"127.0.0.1:{ocr_server.metrics_port}"
    running = RunningPrometheus(binary, tmp_path_factory.mktemp("prometheus"), target)
    try:
        running.wait_for("up == 1")
        # Two pages apart: rates need events between two scrapes.
        for read in (calls.unary, calls.stream):
            ended = running.query("sum(ocr_finished_total)")[0]["value"][1]
            answer = read(ocr_server, page(512, 512, "scrape me"), mode="tiny", max_tokens=8)
            assert answer.reason
            running.wait_for(f"sum(ocr_finished_total) > {ended}")
        running.wait_for("sum(rate(ocr_page_seconds_count[1m])) > 0")
        yield running
    finally:
        running.stop()


def test_promtool_accepts_configuration_rules_and_their_tests() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    for line in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *line], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_scrapes_the_compose_service() -> None:
    config = load_yaml(FOLDER / "prometheus.yml")
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs == {"triton": [TARGET]}
    assert config["rule_files"] == ["alerts.yml"]


def test_every_alert_says_what_to_do_and_has_a_unit_test() -> None:
    tested = (FOLDER / "alerts_test.yml").read_text()
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        for part in ("summary", "description", "runbook"):
            assert rule["annotations"][part].endswith("."), (rule["alert"], part)
        assert rule["alert"] in tested


@pytest.mark.serving
def test_every_rule_evaluates_and_none_fires_on_a_healthy_server(prometheus: RunningPrometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    metrics.wait_for(lambda: all(rule["health"] != "unknown" for rule in rules()), 20)
    assert {rule["name"] for rule in rules()} == {rule["alert"] for rule in alerts()}
    for rule in rules():
        assert rule["health"] == "ok", rule["lastError"]
        assert rule["state"] != "firing", rule


@pytest.mark.serving
def test_every_series_of_the_alerts_exists(prometheus: RunningPrometheus) -> None:
    missing = [
        selector
        for rule in alerts()
        for selector in selectors(rule["expr"])
        if not selector.startswith(GPU) and not prometheus.get("series", match=selector)
    ]
    assert not missing


@pytest.mark.serving
def test_every_series_of_the_dashboard_exists(prometheus: RunningPrometheus) -> None:
    found = {selector for expression in dashboard_expressions() for selector in selectors(expression)}
    missing = [s for s in found if not s.startswith(GPU) and not prometheus.get("series", match=s)]
    assert not missing


@pytest.mark.serving
@pytest.mark.parametrize("expression", dashboard_expressions())
def test_every_panel_shows_something(prometheus: RunningPrometheus, expression: str) -> None:
    result = prometheus.query(expression)
    if GPU not in expression:
        assert result


@pytest.mark.serving
def test_every_metric_of_ours_is_written_down(prometheus: RunningPrometheus) -> None:
    names = {series["__name__"] for series in prometheus.get("series", match='{__name__=~"ocr_.*"}')}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    page_of_metrics = (ROOT / "deploy" / "observability" / "README.md").read_text()
    table = "".join(line for line in page_of_metrics.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(ocr_\w+)`", table)) == families


@pytest.mark.serving
def test_the_annotations_and_the_variable_of_the_dashboard_evaluate(prometheus: RunningPrometheus) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    for annotation in dashboard["annotations"]["list"]:
        prometheus.query(annotation["expr"])
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["instance"]["definition"])
    assert found is not None
    name, label = found.groups()
    assert all(label in series for series in prometheus.get("series", match=name))
    assert prometheus.get("series", match=name)


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        box = panel["gridPos"]
        assert 0 <= box["x"] < box["x"] + box["w"] <= 24
        for x in range(box["x"], box["x"] + box["w"]):
            for y in range(box["y"], box["y"] + box["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken.get((x, y))}"
                taken[x, y] = panel["title"]


def test_every_panel_has_a_title_a_description_a_unit_and_the_one_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    sources = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    assert [(each["name"], each["query"]) for each in sources] == [("datasource", "prometheus")]
    for panel in panels():
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


def test_grafana_is_provisioned_with_this_prometheus_and_this_folder() -> None:
    sources = load_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert [(each["type"], each["url"]) for each in sources] == [("prometheus", "http://prometheus:9090")]
    interval = load_yaml(FOLDER / "prometheus.yml")["global"]["scrape_interval"]
    assert sources[0]["jsonData"]["timeInterval"] == interval
    providers = load_yaml(GRAFANA / "provisioning" / "dashboards" / "dashboards.yml")["providers"]
    (volume,) = [
        each for each in mounts("grafana") if each.startswith("./deploy/observability/grafana/dashboards:")
    ]
    assert [each["options"]["path"] for each in providers] == [volume.split(":")[1]]


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_compose_mounts_files_that_are_there(service: str) -> None:
    ours = [each for each in mounts(service) if each.startswith("./")]
    assert len(ours) == 2
    for volume in ours:
        source, _, options = volume.split(":")
        assert (ROOT / source).exists()
        assert options == "ro"


@pytest.mark.serving
def test_the_adapter_s_query_gives_a_pod_s_waiting_pages(prometheus: RunningPrometheus) -> None:
    """The Kubernetes adapter's template, filled in as the adapter does for one pod."""
    (rule,) = load_yaml(ADAPTER)["rules"]["custom"]
    found = {series["__name__"] for series in prometheus.get("series", match=rule["seriesQuery"])}
    assert found == {"ocr_decoder_waiting", "ocr_decoder_running"}
    matchers = ",".join(f'{name}="{value}"' for name, value in POD.items())
    for name in found:
        filled = rule["metricsQuery"].replace("<<.Series>>", name)
        filled = filled.replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")
        (result,) = prometheus.query(filled)
        assert result["metric"] == {"pod": POD["pod"]}
        assert float(result["value"][1]) >= 0
