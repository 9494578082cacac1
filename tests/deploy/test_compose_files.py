"""The compose files on paper: the Compose Specification's schema, profiles, confinement, and what they start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from export.__main__ import parser as export_parser
from rtprune.modes import MODES
from rtprune.settings import Settings
from server.launcher import tritonserver
from server.launcher.cli import _parser as server_parser
from server.launcher.settings import ServerSettings
from tests.deploy.engine import ROOT
from tests.deploy.stack import FILES, PROXY_FILES, compose_command, without_compose_settings

SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
OURS = ("graphs", "export", "triton", "export-cpu", "triton-cpu")
SERVERS = {"triton": "gpu.Dockerfile", "triton-cpu": "cpu.Dockerfile"}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::?-([^}]*))?\}")


def settings_file() -> dict[str, str]:
    """The lines of .env."""
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def filled(text: str, values: dict[str, str]) -> str:
    """A compose file's text with its variables replaced, as Compose does it."""
    return VARIABLE.sub(lambda found: values.get(found[1]) or found[2] or "", text)


@lru_cache(maxsize=8)
def compose_file(name: str = FILES[0]) -> dict[str, Any]:
    """One compose file with the values of .env."""
    found: dict[str, Any] = yaml.safe_load(filled((ROOT / name).read_text(), settings_file()))
    return found


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose_file()["services"]
    return found


def composed(*arguments: str, files: tuple[str, ...] = FILES) -> str:
    """What Compose itself makes of the files; needs no engine."""
    env = without_compose_settings()
    line = compose_command(env)
    if line is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    options = [part for name in files for part in ("-f", name)]
    done = subprocess.run(
        [*line, *options, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted({*FILES, *PROXY_FILES}))
def test_a_file_fits_the_specification(name: str) -> None:
    raw = yaml.safe_load((ROOT / name).read_text())
    jsonschema.validate(raw, SCHEMA)
    jsonschema.validate(compose_file(name), SCHEMA)


def test_the_specification_refuses_what_is_wrong() -> None:
    wrong = json.loads(json.dumps(compose_file()))
    wrong["services"]["triton"]["read_onyl"] = True
    with pytest.raises(jsonschema.ValidationError, match="read_onyl"):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize("files", [FILES, PROXY_FILES])
@pytest.mark.parametrize("profile", ["gpu", "cpu", "observability"])
def test_compose_reads_the_files(files: tuple[str, ...], profile: str) -> None:
    read = yaml.safe_load(composed("--profile", profile, "config", files=files))
    assert "services" in read


@pytest.mark.parametrize("files", [FILES, PROXY_FILES])
def test_every_variable_has_a_default_and_stands_in_the_settings_file(files: tuple[str, ...]) -> None:
    for name in files:
        for variable, default in VARIABLE.findall((ROOT / name).read_text()):
            assert default, f"{variable} in {name}"
            assert settings_file()[variable] == default, variable
    used = {v for name in {*FILES, *PROXY_FILES} for v, _ in VARIABLE.findall((ROOT / name).read_text())}
    unused = {name for name in settings_file() if not name.startswith("COMPOSE_")} - used
    assert not unused


def test_each_service_is_in_one_profile_and_gpu_is_the_default() -> None:
    profiles = {name: service["profiles"] for name, service in services().items()}
    assert profiles == {
        "graphs": ["gpu"],
        "export": ["gpu"],
        "triton": ["gpu"],
        "export-cpu": ["cpu"],
        "triton-cpu": ["cpu"],
        "prometheus": ["observability"],
        "grafana": ["observability"],
    }
    assert settings_file()["COMPOSE_PROFILES"] == "gpu"


def test_a_gpu_needs_one_edit_and_a_cpu_none() -> None:
    mounted = [v["source"] for s in services().values() for v in s.get("volumes", []) if isinstance(v, dict)]
    assert mounted == [settings_file()["CHECKPOINT"], settings_file()["CPU_CHECKPOINT"]]
    assert (ROOT / settings_file()["CPU_CHECKPOINT"] / "config.json").is_file()


@pytest.mark.parametrize("name", [*OURS, "prometheus", "grafana", "proxy"])
def test_every_container_is_confined(name: str) -> None:
    service = (compose_file(PROXY_FILES[1])["services"] | services())[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service)
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")
    if name in OURS:
        assert service["user"] == "1000:1000"


def test_exports_have_no_network_and_servers_cannot_write_engines() -> None:
    for name in ("graphs", "export", "export-cpu"):
        assert services()[name]["network_mode"] == "none"
        assert services()[name]["restart"] == "no"
    for name in SERVERS:
        (volume,) = services()[name]["volumes"]
        assert volume.endswith(":/engines:ro")
        assert services()[name]["networks"]["default"]["aliases"] == ["triton"]


def test_ports_are_published_on_loopback_unless_asked() -> None:
    for name in ("docker-compose.override.yml", "deploy/compose.proxy.yml"):
        for service in compose_file(name)["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not any("ports" in service for service in services().values())


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_settings_are_real_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {key: str(value) for key, value in services()[name]["environment"].items()}
    for prefix, settings in (("OCR_", ServerSettings), ("RTPRUNE_", Settings)):
        named = {key.removeprefix(prefix).lower() for key in environment if key.startswith(prefix)}
        assert named <= set(settings.model_fields)
    assert all(key.startswith(("OCR_", "RTPRUNE_")) for key in environment)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    server, library = ServerSettings(), Settings()
    assert library.mode in MODES
    modes = settings_file()["CPU_MODES" if name == "triton-cpu" else "MODES"].split(",")
    assert library.mode in modes
    # Docker kills only after the server has had its time; the server's own reserve is 2 s.
    assert int(services()[name]["stop_grace_period"].removesuffix("s")) > server.drain_seconds + 5


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_command_line_is_one_of_the_real_binary(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in services()[name]["environment"].items():
        monkeypatch.setenv(key, str(value))
    found = tritonserver.find_installation(tmp_path)
    known = tritonserver.options(found.binary, tritonserver.environment(found, ServerSettings()))
    line = tritonserver.command(found, ServerSettings(), "prefix_", known)
    assert {part.split("=")[0] for part in line[1:]} <= known
    assert "--http-address=0.0.0.0" in line
    assert "--model-control-mode=none" in line


def commands(service: dict[str, Any]) -> list[list[str]]:
    """The export command lines of a service, without the interpreter."""
    words = service["command"]
    if words[:2] == ["sh", "-c"]:
        lines = [line.split() for line in words[2].split(" && ")]
        assert all(line[:3] == ["python3", "-m", "export"] for line in lines)
        return [line[3:] for line in lines]
    return [words]


def test_the_export_commands_parse_and_fit_together() -> None:
    parsed = {
        name: [export_parser().parse_args(line) for line in commands(services()[name])]
        for name in ("graphs", "export", "export-cpu")
    }
    assert [options.step for options in parsed["graphs"] + parsed["export"]] == ["all", "build", "verify"]
    assert {o.target for o in parsed["graphs"] + parsed["export"]} == {"gpu"}
    assert [(o.step, o.target) for o in parsed["export-cpu"]] == [("all", "cpu")]
    outputs = {str(options.output) for found in parsed.values() for options in found}
    assert outputs == {services()["triton"]["environment"]["OCR_ENGINES"]}
    for name in ("graphs", "export-cpu"):
        (options,) = parsed[name]
        assert set(options.modes.split(",")) <= set(MODES)
        assert str(options.checkpoint) in [v["target"] for v in services()[name]["volumes"] if "target" in v]


def test_one_gpu_is_reserved() -> None:
    for name in ("export", "triton"):
        (device,) = services()[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert "deploy" not in services()["graphs"]


def test_the_order_is_export_then_server() -> None:
    done = {"condition": "service_completed_successfully"}
    assert services()["export"]["depends_on"] == {"graphs": done}
    assert services()["triton"]["depends_on"] == {"export": done}
    assert services()["triton-cpu"]["depends_on"] == {"export-cpu": done}


def test_what_the_observers_mount_is_there() -> None:
    for name in ("prometheus", "grafana"):
        mounts = [m.split(":") for m in services()[name]["volumes"] if m.startswith("./")]
        assert mounts
        assert all((ROOT / source).exists() and rights == "ro" for source, _, rights in mounts)
    provider = yaml.safe_load(
        (ROOT / "deploy/observability/grafana/provisioning/dashboards/dashboards.yml").read_text()
    )
    path = provider["providers"][0]["options"]["path"]
    assert path in [m.split(":")[1] for m in services()["grafana"]["volumes"]]


@pytest.mark.parametrize("dockerfile", ["cpu.Dockerfile", "gpu.Dockerfile"])
def test_a_dockerfile_copies_what_is_there_and_not_ignored(dockerfile: str) -> None:
    text = (ROOT / "deploy/docker" / dockerfile).read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, flags=re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert set(copied) <= allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("name", SERVERS)
def test_a_servers_image_is_confined_by_itself(name: str) -> None:
    text = (ROOT / "deploy/docker" / SERVERS[name]).read_text()
    assert services()[name]["build" if "build" in services()[name] else "image"]
    assert "USER 1000:1000" in text
    (command,) = re.findall(r'^CMD (\["python3?", "-m", "server".*\])$', text, flags=re.MULTILINE)
    assert server_parser().parse_args(json.loads(command)[3:]).action == "serve"
    (check,) = re.findall(r"^ +CMD (\[.*health.*\])$", text, flags=re.MULTILINE)
    compile(json.loads(check)[2], "health check", "exec")


def test_the_gpu_image_is_the_last_with_this_tensorrt_llm() -> None:
    from export.build import TRTLLM_VERSION

    text = (ROOT / "deploy/docker/gpu.Dockerfile").read_text()
    assert "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3" in text
    assert f"llm.__version__ == '{TRTLLM_VERSION}'" in text


def test_requirements_leave_what_is_there_as_it_is(tmp_path: Path) -> None:
    script = ROOT / "deploy/docker/requirements.py"
    site = tmp_path / "site"
    for package, version in (("numpy", "1.26.0"), ("opencv_python_headless", "4.9.0")):
        folder = site / f"{package}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    frozen = tmp_path / "frozen.txt"
    line = [sys.executable, "-S", str(script), "preprocess", "vision", "decoder", "server", "--lacking"]
    line += ["--frozen", str(frozen)]
    line += ["--without", "torch,nvidia-pytriton", "--project", str(ROOT / "pyproject.toml")]
    line += ["--constraints", str(ROOT / "constraints.txt")]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    names = {re.split(r"[=\[]", each)[0] for each in done.stdout.split()}
    assert {"pydantic-settings", "tokenizers", "psutil", "tritonclient"} <= names
    assert not {"numpy", "opencv-python-headless", "torch", "nvidia-pytriton"} & names
    constraints = frozen.read_text().splitlines()
    assert {"numpy==1.26.0", "opencv-python-headless==4.9.0"} <= set(constraints)
    assert len([each for each in constraints if each.lower().startswith("numpy==")]) == 1
    assert any(each.startswith("tokenizers==") for each in constraints)
