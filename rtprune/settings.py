"""Every limit and default of the server, with unit and reason; read once from RTPRUNE_* variables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the stages. `RTPRUNE_MAX_PIXELS=...` in the environment overrides `max_pixels`."""

    model_config = SettingsConfigDict(env_prefix="RTPRUNE_", frozen=True, extra="ignore")

    # Where things are
    engines: Path = Field(Path("engines"), description="Folder that export wrote, with manifest.json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level logged."
    )

    # What a request gets when it does not say
    mode: str = Field("base", description="Mode of a request that names none: the paper's best trade-off.")
    max_tokens: int = Field(4096, ge=1, description="Output tokens of a request that names no MAX_TOKENS.")
    time_limit: float = Field(300.0, gt=0, description="Seconds a request may take, queueing included.")
    max_time_limit: float = Field(3600.0, gt=0, description="Seconds that a request may ask for at most.")
    ngram: int = Field(30, ge=0, description="n of the no-repeat rule: the authors' value for images.")
    ngram_window: int = Field(90, ge=0, description="Generated tokens that the no-repeat rule looks back.")

    # What an image may be
    max_image_bytes: int = Field(
        20 * 2**20, ge=1, description="Bytes of an encoded image; a 600 dpi A4 colour PNG has about 15 MB."
    )
    max_pixels: int = Field(
        64_000_000,
        ge=1,
        description="Pixels an image header may declare; A3 at 600 dpi has 70 million, A4 35.",
    )
    max_prompt_bytes: int = Field(4096, ge=1, description="Bytes of the PROMPT text.")
    max_tiles: int = Field(
        9,
        ge=2,
        le=9,
        description="Tiles of a gundam page; 9 in the reference code, 6 in the authors' vLLM code.",
    )

    # How the front doors behave
    max_encoding: int = Field(
        16, ge=1, description="Streamed pages before the decoder at most, beside those that it admits."
    )
    cancel_poll_seconds: float = Field(
        0.1, gt=0, description="Seconds between two looks for clients that have gone."
    )
    stream_seconds: float = Field(
        0.05, ge=0, description="Seconds between two pieces of a stream; a reader sees no shorter pause."
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read from the environment at the first call."""
    return Settings()
