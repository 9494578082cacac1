"""`status`: is the server up, what does it serve, how busy is it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, field

from deepseek_ocr_client.cli import options as cli
from deepseek_ocr_client.cli.report import write
from deepseek_ocr_client.errors import ClientError, ExitCode, ServerUnavailable
from deepseek_ocr_client.ocr import OcrClient
from deepseek_ocr_client.prometheus import fetch
from deepseek_ocr_client.settings import STREAM_MODEL, UNARY_MODEL, ClientSettings

HELP = "server and models ready, versions, modes served, live numbers"
MODELS = (UNARY_MODEL, STREAM_MODEL, "encode", "preprocess", "vision", "rtprune", "generate", "decoder")

# How busy the server is and what pruning saves: the metric that each number is the sum of.
NUMBERS = {
    "running": "ocr_decoder_running",
    "waiting": "ocr_decoder_waiting",
    "kv_tokens_used": "ocr_kv_tokens_used",
    "kv_tokens_total": "ocr_kv_tokens_total",
    "output_tokens": "ocr_output_tokens_total",
    "visual_tokens": "ocr_visual_tokens_total",
    "visual_tokens_kept": "ocr_visual_tokens_kept_total",
    "first_token_seconds": "ocr_first_token_seconds_sum",
    "queue_seconds": "ocr_queue_seconds_total",
    "gpu_utilization": "nv_gpu_utilization",
    "gpu_memory_used_bytes": "nv_gpu_memory_used_bytes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object")
    add(
        "--metrics-url",
        default=os.environ.get("DEEPSEEK_OCR_METRICS_URL", ClientSettings().metrics_url),
        metavar="URL",
        help="default %(default)s",
    )
    cli.add_connection(parser)


@dataclass(slots=True)
class Status:
    """What was found out."""

    address: str
    version: str
    ready: bool
    models: dict[str, bool] = field(default_factory=dict)
    modes: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    metrics_error: str = ""

    @property
    def serving(self) -> bool:
        """Whether pages can be read."""
        return self.ready and all(self.models.values())


def run(arguments: argparse.Namespace) -> ExitCode:
    """Entry point of the command: 0 only where pages can be read."""
    settings = cli.settings_of(arguments)
    with cli.client_of(arguments, settings) as client:
        status = look(client, arguments.metrics_url, settings)
    record = {**asdict(status), "serving": status.serving}
    write(json.dumps(record, ensure_ascii=False) + "\n" if arguments.json else _text(status))
    return ExitCode.OK if status.serving else ExitCode.UNAVAILABLE


def look(client: OcrClient, metrics_url: str, settings: ClientSettings) -> Status:
    """Ask the server; `ServerUnavailable` where none answers."""
    metadata = client.call("get_server_metadata")
    name, version = (
        (metadata["name"], metadata["version"])
        if isinstance(metadata, dict)
        else (metadata.name, metadata.version)
    )
    status = Status(str(client.endpoint), f"{name} {version}", bool(client.call("is_server_ready")))
    for model in MODELS:
        try:
            status.models[model] = bool(client.call("is_model_ready", model))
        except ServerUnavailable as error:
            if error.status != "NOT_FOUND":
                raise
            status.models[model] = False
    try:
        metrics = fetch(metrics_url, settings.connect_timeout)
    except ClientError as error:
        status.metrics_error = str(error)
        return status
    status.modes = sorted(metrics.by("ocr_mode_served", "mode"))
    status.finished = metrics.by("ocr_finished_total", "reason")
    totals = {name: metrics.total(metric) for name, metric in NUMBERS.items()}
    status.numbers = {name: total for name, total in totals.items() if total is not None}
    return status


def _text(status: Status) -> str:
    ready = [model for model, is_ready in status.models.items() if is_ready]
    missing = [model for model, is_ready in status.models.items() if not is_ready]
    lines = [
        f"server    {status.version} at {status.address}, {'ready' if status.ready else 'not ready'}",
        f"models    {', '.join(ready) or 'none'} ready"
        + (f"; not ready: {', '.join(missing)}" if missing else ""),
    ]
    if status.metrics_error:
        return "\n".join([*lines, f"numbers   {status.metrics_error}"]) + "\n"
    numbers = status.numbers
    lines.append(f"modes     {', '.join(status.modes) or 'not said'}")
    if total := numbers.get("kv_tokens_total"):
        lines.append(
            f"now       {numbers.get('running', 0):.0f} pages decoding, {numbers.get('waiting', 0):.0f} waiting, "
            f"{numbers.get('kv_tokens_used', 0) / total:.0%} of KV memory in use"
        )
    if "gpu_utilization" in numbers:
        used = numbers.get("gpu_memory_used_bytes", 0) / 2**30
        lines.append(f"GPU       {numbers['gpu_utilization']:.0%} busy, {used:.1f} GiB in use")
    if pages := sum(status.finished.values()):
        counted = sorted((reason, count) for reason, count in status.finished.items() if count)
        reasons = ", ".join(f"{reason} {count:.0f}" for reason, count in counted)
        first = numbers.get("first_token_seconds", 0) / pages
        lines.append(f"so far    {pages:.0f} pages ({reasons}), first token after {first:.2f} s on average")
    if tokens := numbers.get("visual_tokens"):
        kept = numbers.get("visual_tokens_kept", 0)
        lines.append(f"pruning   {kept:.0f} of {tokens:.0f} visual tokens kept ({kept / tokens:.0%})")
    return "\n".join(lines) + "\n"
