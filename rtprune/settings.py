"""Every limit and default of the server, each with its unit and its reason; read once from RTPRUNE_* variables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the stages. `RTPRUNE_MAX_PIXELS=...` in the environment overrides `max_pixels`, and so on."""

    model_config = SettingsConfigDict(env_prefix="RTPRUNE_", frozen=True, extra="ignore")

    # Where things are
    engines: Path = Field(Path("engines"), description="Folder that export wrote, with manifest.json.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level logged.")

    # What a request gets when it does not say
    mode: str = Field("base", description="Mode of a request that names none: the paper's best trade-off.")
    max_tokens: int = Field(4096, ge=1, description="Output tokens of a request that names no MAX_TOKENS.")
    time_limit: float = Field(300.0, gt=0, description="Seconds a request may take, queueing included.")

    # What an image may be
    max_image_bytes: int = Field(
        20 * 2**20, ge=1, description="Bytes of an encoded image; a 600 dpi A4 colour PNG has about 15 MB."
    )
    max_pixels: int = Field(
        64_000_000, ge=1, description="Pixels an image header may declare; A3 at 600 dpi has 70 million, A4 35."
    )
    max_prompt_bytes: int = Field(4096, ge=1, description="Bytes of the PROMPT text.")
    max_tiles: int = Field(
        9, ge=2, le=9, description="Tiles of a gundam page; 9 in the reference code, 6 in the authors' vLLM code."
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read from the environment at the first call."""
    return Settings()
