"""The launcher's settings: addresses, limits, what happens when a part dies; read from OCR_* variables."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """How the server is started. `OCR_HTTP_PORT=...` in the environment overrides `http_port`, and so on."""

    model_config = SettingsConfigDict(env_prefix="OCR_", frozen=True, extra="ignore")

    engines: Path = Field(Path("engines"), description="Folder that export wrote, with manifest.json.")
    host: str = Field("127.0.0.1", description="Address of the endpoints: loopback unless asked.")
    http_port: int = Field(8000, ge=1, le=65535, description="HTTP port, Triton's usual one.")
    grpc_port: int = Field(8001, ge=1, le=65535, description="gRPC port, Triton's usual one.")
    metrics_port: int = Field(8002, ge=1, le=65535, description="Prometheus port, Triton's usual one.")
    metrics_host: str = Field("", description="Address of the metrics; empty means the same as host.")
    http_threads: int = Field(8, ge=1, description="HTTP worker threads.")
    http_body_mib: int = Field(
        32,
        ge=1,
        description="MiB of an HTTP request, where the server can bound it (24.10 cannot): a 20 MiB image in base64.",
    )
    grpc_pool: int = Field(16, ge=1, description="gRPC request objects kept for reuse: bounds idle memory.")
    grpc_ping_seconds: float = Field(
        30.0,
        ge=0,
        description="Seconds between a gRPC client's pings at least; Triton's own 300 ends silent streams of clients "
        "that ping more often.",
    )
    stub_shm_mib: int = Field(
        4, ge=1, description="Shared memory of a model process at start, in MiB; it grows with the pages."
    )
    shared_memory: bool = Field(False, description="Whether clients may register shared memory regions.")
    drain_seconds: int = Field(10, ge=0, description="Seconds that open requests get when the server stops.")
    dead_stub_seconds: float = Field(
        1.0, ge=0, description="Seconds that open requests get once a model's process has died."
    )
    hang_seconds: float = Field(
        60.0,
        ge=0,
        description="Seconds without a sign of life after which a model's process has hung and the server is ended; 0 "
        "is never. A busy process misses a second or two.",
    )
    start_seconds: float = Field(300.0, gt=0, description="Seconds until the server must be ready.")
    restarts: int = Field(
        0, ge=0, description="How often the launcher restarts a server that died; 0 exits non-zero instead."
    )
    log_file: Path | None = Field(None, description="File for the server's log; none: standard output.")
    verbose: bool = Field(False, description="Triton's verbose log.")
    lock: str = Field(
        default_factory=lambda: secrets.token_hex(16),
        description="Key of the closed protocols; random, so that nobody has it, unless it is set.",
    )
