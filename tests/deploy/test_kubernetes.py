"""The Kubernetes manifests: against Kubernetes' own schemas, against each other, and against what they start."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from export.__main__ import job_of
from export.__main__ import parser as export_parser
from rtprune.settings import Settings
from server.launcher.cli import _parser as server_parser
from server.launcher.settings import ServerSettings
from tests.serving.running import RunningServer

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
ADAPTER = FOLDER / "prometheus-adapter" / "values.yaml"
VERSIONS = (
    "1.31",
    "1.34",
    "1.37",
)  # the oldest that has every field, one between, the newest schemas there are
SERVER = {"app.kubernetes.io/name": "deepseek-ocr", "app.kubernetes.io/component": "server"}
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def manifests() -> list[dict[str, Any]]:
    return [each for path in sorted(FOLDER.glob("*.yaml")) for each in documents(path)]


def named(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest.get('metadata', {}).get('name', '')}"


def the(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [m for m in manifests() if m["kind"] == kind and name in ("", m["metadata"]["name"])]
    return found


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod template by the kind that makes it."""
    return [(m["kind"], m["spec"]["template"]) for m in manifests() if m["kind"] in ("Deployment", "Job")]


def containers() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{kind}/{container['name']}", container)
        for kind, pod in pods()
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
    ]


def server_pod() -> dict[str, Any]:
    spec: dict[str, Any] = the("Deployment")["spec"]["template"]["spec"]
    return spec


def server_container() -> dict[str, Any]:
    (found,) = server_pod()["containers"]
    return dict(found)


def environment() -> dict[str, str]:
    data: dict[str, str] = the("ConfigMap")["data"]
    return data


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: 16Gi, 500m, 4."""
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    return float(text[:-2]) * UNITS[text[-2:]] if text[-2:] in UNITS else float(text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [m for m in manifests() if m["kind"] != "Kustomization"], ids=named)
def test_a_manifest_fits_the_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    broken = the("Deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_the_kustomization_names_every_file() -> None:
    (kustomization,) = documents(FOLDER / "kustomization.yaml")
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files
    assert {image["name"] for image in kustomization["images"]} == {c["image"] for _, c in containers()}


def test_kustomize_builds_every_manifest() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    line = [kubectl, "kustomize", str(FOLDER)]
    built = subprocess.run(line, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    assert {named(m) for m in found} == {named(m) for m in manifests() if m["kind"] != "Kustomization"}
    for manifest in found:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        for pod in [manifest["spec"]["template"]] if manifest["kind"] in ("Deployment", "Job") else []:
            for container in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
                assert container["image"].startswith("registry.example.com/")


def test_every_selector_finds_the_server() -> None:
    labels = the("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        the("Deployment")["spec"]["selector"]["matchLabels"],
        the("Service")["spec"]["selector"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the("NetworkPolicy", "server")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in server_pod()["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector == SERVER
        assert selector.items() <= labels.items()
    export_labels = the("Job")["spec"]["template"]["metadata"]["labels"]
    assert not SERVER.items() <= export_labels.items()


def test_every_reference_leads_somewhere() -> None:
    claims = {m["metadata"]["name"] for m in manifests() if m["kind"] == "PersistentVolumeClaim"}
    for _, pod in pods():
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        used = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "emptyDir" not in v]
        assert set(used) <= claims
        for container in spec.get("initContainers", []) + spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert server_container()["envFrom"] == [{"configMapRef": {"name": the("ConfigMap")["metadata"]["name"]}}]
    target = the("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", the("Deployment")["metadata"]["name"])
    ports = {port["name"] for port in server_container()["ports"]}
    assert {port["targetPort"] for port in the("Service")["spec"]["ports"]} <= ports
    rules = the("NetworkPolicy", "server")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports


def test_the_service_does_not_publish_metrics() -> None:
    assert {port["name"] for port in the("Service")["spec"]["ports"]} == {"http", "grpc"}
    assert the("Service")["spec"].get("type", "ClusterIP") == "ClusterIP"


@pytest.mark.parametrize(("name", "container"), containers(), ids=[name for name, _ in containers()])
def test_every_container_is_confined(name: str, container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert ":" not in container["image"]  # the kustomization names the version, once
    resources = container["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert quantity(resources["requests"]["memory"]) <= quantity(resources["limits"]["memory"])


@pytest.mark.parametrize(("kind", "pod"), pods(), ids=[kind for kind, _ in pods()])
def test_every_pod_is_confined(kind: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    context = spec["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


def test_all_pods_run_as_the_same_user_who_owns_the_engines() -> None:
    users = {(pod["spec"]["securityContext"]["runAsUser"]) for _, pod in pods()}
    assert len(users) == 1
    assert the("Job")["spec"]["template"]["spec"]["securityContext"]["fsGroup"] in users


def test_nothing_reaches_out_and_nobody_else_reaches_in() -> None:
    rest = the("NetworkPolicy", "nothing-by-default")["spec"]
    assert rest == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in the("NetworkPolicy", "server")["spec"]["ingress"]:
        assert rule["from"]
        assert all(
            "matchLabels" in {**each.get("podSelector", {}), **each["namespaceSelector"]}
            for each in rule["from"]
        )


def test_the_server_has_one_gpu_of_the_type_that_the_engines_were_built_on() -> None:
    gpu = "nvidia.com/gpu"
    asked = {name: c["resources"]["limits"].get(gpu) for name, c in containers()}
    assert {name for name, count in asked.items() if count} == {
        "Deployment/server",
        "Job/build",
        "Job/verify",
    }
    assert set(asked.values()) == {None, "1"}
    (job,) = [pod["spec"] for kind, pod in pods() if kind == "Job"]
    assert job["nodeSelector"] == server_pod()["nodeSelector"]
    assert job["tolerations"] == server_pod()["tolerations"]


def test_every_setting_is_one_that_the_server_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"RTPRUNE_{name.upper()}" for name in Settings.model_fields}
    known |= {f"OCR_{name.upper()}" for name in ServerSettings.model_fields}
    assert set(environment()) <= known
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    settings, limits = ServerSettings(), Settings()
    assert settings.host == "0.0.0.0"  # noqa: S104 - the network policy says who reaches it
    assert settings.drain_seconds >= limits.time_limit  # what is open when a pod goes may finish
    ports = {port["name"]: port["containerPort"] for port in server_container()["ports"]}
    assert ports == {"http": settings.http_port, "grpc": settings.grpc_port, "metrics": settings.metrics_port}
    mounts = {mount["name"]: mount["mountPath"] for mount in server_container()["volumeMounts"]}
    assert settings.engines.parent == Path(mounts["engines"])


def test_a_pod_gets_the_time_that_its_server_takes_to_drain_and_to_start() -> None:
    before = float(server_container()["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain = float(environment()["OCR_DRAIN_SECONDS"])
    assert server_pod()["terminationGracePeriodSeconds"] >= before + drain + 20
    startup = server_container()["startupProbe"]
    limit = startup["periodSeconds"] * startup["failureThreshold"]
    assert limit >= float(environment()["OCR_START_SECONDS"])
    assert the("Deployment")["spec"]["progressDeadlineSeconds"] > limit


def test_the_autoscaler_reads_gauges_that_the_adapter_offers_within_the_server_s_bounds() -> None:
    (rule,) = documents(ADAPTER)[0]["rules"]["custom"]
    targets = {
        metric["pods"]["metric"]["name"]: quantity(metric["pods"]["target"]["averageValue"])
        for metric in the("HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    assert set(targets) == {"ocr_decoder_waiting", "ocr_decoder_running"}
    assert all(name.removeprefix("ocr_decoder_") in rule["seriesQuery"] for name in targets)
    assert targets["ocr_decoder_waiting"] < int(environment()["RTPRUNE_MAX_WAITING"])
    assert targets["ocr_decoder_running"] < int(environment()["RTPRUNE_MAX_RUNNING"])
    spec = the("HorizontalPodAutoscaler")["spec"]
    assert spec["minReplicas"] > the("PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert "replicas" not in the("Deployment")["spec"]  # an apply would undo the autoscaler's choice


@pytest.mark.parametrize(("name", "container"), containers(), ids=[name for name, _ in containers()])
def test_every_command_line_is_one_that_the_program_takes(name: str, container: dict[str, Any]) -> None:
    line = [*container["command"], *container.get("args", [])]
    if line[0] == "sh":
        checked = subprocess.run(["sh", "-n", "-c", line[-1]], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        waited_for = {
            "Deployment": environment()["OCR_ENGINES"] + "/manifest.json",
            "Job": "/checkpoint/.complete",
        }
        assert f"-f {waited_for[name.split('/', maxsplit=1)[0]]} " in line[-1]
        return
    assert line[1] == "-m"
    if line[2] == "server":
        assert server_parser().parse_args(line[3:]).action == "serve"
        return
    options = export_parser().parse_args(line[3:])
    assert str(options.output) == environment()["OCR_ENGINES"]
    if options.checkpoint is not None:
        assert job_of(options).target == "gpu"
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert all(str(path) in mounted for path in (options.checkpoint, options.output.parent) if path)


def compose(service: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][service]
    return found


def default(text: str) -> str:
    """What compose makes of ${NAME:-default} without a setting."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", str(text))
    return found[1] if found else str(text)


def gibibytes(text: str) -> str:
    return default(text).removesuffix("g") + "Gi"


def test_a_pod_is_as_confined_as_the_compose_service() -> None:
    service, context = compose("triton"), server_pod()["securityContext"]
    assert service["user"] == f"{context['runAsUser']}:{context['runAsGroup']}"
    confinement = server_container()["securityContext"]
    assert service["read_only"] is confinement["readOnlyRootFilesystem"] is True
    assert service["cap_drop"] == confinement["capabilities"]["drop"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert gibibytes(service["mem_limit"]) == server_container()["resources"]["limits"]["memory"]
    shm = {volume["name"]: volume for volume in server_pod()["volumes"]}["shm"]
    assert gibibytes(service["shm_size"]) == shm["emptyDir"]["sizeLimit"]


def test_pods_run_the_images_and_the_settings_of_compose() -> None:
    (kustomization,) = documents(FOLDER / "kustomization.yaml")
    tags = {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]}
    assert tags == {compose("triton")["image"], compose("graphs")["image"]}
    theirs = {name: default(value) for name, value in compose("triton")["environment"].items()}
    differ = {name for name, value in environment().items() if theirs[name] != value}
    assert differ == {"OCR_DRAIN_SECONDS"}  # Kubernetes has time: another pod serves meanwhile


def test_the_job_runs_the_steps_of_compose() -> None:
    lines = {name: [*c["command"], *c.get("args", [])] for name, c in containers()}
    graphs = [default(word) for word in compose("graphs")["command"]]
    assert lines["Job/graphs"] == ["python", "-m", "export", *graphs]
    both = " && ".join(" ".join(lines[f"Job/{step}"]) for step in ("build", "verify"))
    assert compose("export")["command"] == ["sh", "-c", both]


def test_the_startup_probe_s_command_line_is_the_readiness_check() -> None:
    line = server_container()["startupProbe"]["exec"]["command"]
    assert server_parser().parse_args(line[3:]).action == "ready"


@pytest.mark.serving
def test_the_probes_and_the_metrics_path_answer_on_a_real_server(ocr_server: RunningServer) -> None:
    ports = {"http": ocr_server.http_port, "grpc": ocr_server.grpc_port, "metrics": ocr_server.metrics_port}
    asked = [server_container()[probe]["httpGet"] for probe in ("readinessProbe", "livenessProbe")]
    notes = the("Deployment")["spec"]["template"]["metadata"]["annotations"]
    declared = {str(port["containerPort"]): port["name"] for port in server_container()["ports"]}
    asked.append({"path": notes["prometheus.io/path"], "port": declared[notes["prometheus.io/port"]]})
    for each in asked:
        url = f"http://127.0.0.1:{ports[each['port']]}{each['path']}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200
