"""Every limit and default of the server, with unit and reason; read once from RTPRUNE_* variables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

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
    mode: str = Field(
        "large",
        description="Mode of a request that names none: the best scores, and pruning costs them least.",
    )
    retention: Literal["auto", "dynamic", "off"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto",
        description="Share of content tokens kept where a request names none: auto is dynamic in large and gundam "
        "and off in tiny, small and base, where the paper loses 3 to 15 points by it; or one of these, or a share.",
    )
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
        150_000_000,
        ge=1,
        description="Pixels an image header may declare; A3 at 600 dpi has 70 million, A4 35.",
    )
    max_decoded_bytes: int = Field(
        256_000_000,
        ge=1,
        description="Bytes of a decoded image: a pixel takes 1 in grey and two colours, 2 in grey of 16 bits, 4 in "
        "colour. A larger JPEG is decoded at a smaller size, anything else refused.",
    )
    max_aspect: int = Field(
        200, ge=1, description="Longer side over shorter at most; beyond it a page is thinner than a letter."
    )
    max_prompt_bytes: int = Field(4096, ge=1, description="Bytes of the PROMPT text.")
    max_tiles: int = Field(
        9,
        ge=2,
        le=9,
        description="Tiles of a gundam page; 9 in the reference code, 6 in the authors' vLLM code.",
    )

    # How the endpoints behave
    max_encoding: int = Field(
        16,
        ge=1,
        description="Streamed pages encoded at one time; as many are let in beside those that the decoder admits.",
    )
    cancel_poll_seconds: float = Field(
        0.1, gt=0, description="Seconds between two looks for clients that have gone."
    )
    gauge_seconds: float = Field(
        0.25, gt=0, description="Seconds between two readings of the decoder's gauges; scrapes are slower."
    )
    stream_seconds: float = Field(
        0.05, ge=0, description="Seconds between two pieces of a stream; a reader sees no shorter pause."
    )

    # When text is a loop and is cut off: a false cut loses data, a late one costs seconds.
    repetition_guard: bool = Field(True, description="Whether loops are looked for at all.")
    repetition_chars: int = Field(
        2200,
        ge=100,
        description="Characters without anything new: a column that counts to 400 has 1,500, a sheet of 30 equal "
        "labels 1,800. Something new halves the count.",
    )
    repetition_copies: int = Field(
        5,
        ge=2,
        description="Times that a longer part stands there: a sheet has the same form two to four times.",
    )

    # How the vision encoder runs
    vision_max_batch: int = Field(
        8, ge=1, description="Images of one size in one run; pages that wait together share it."
    )
    vision_threads: int = Field(
        0, ge=0, description="Threads of ONNX Runtime on a CPU; 0 is one per core that the process may use."
    )
    vision_copied_mib: int = Field(
        256,
        ge=0,
        description="MiB of vision weights up to which ONNX Runtime keeps a faster copy for each input size; "
        "DeepSeek-OCR's 1,557 are shared instead, for 1.6 GB in all in place of 6.2, and 6 to 11 % more time.",
    )

    # How the decoder runs
    max_running: int = Field(
        16, ge=1, description="Pages decoded together at most; each holds KV memory for its whole output."
    )
    max_waiting: int = Field(
        64, ge=0, description="Pages that wait for the decoder at most; beyond it they are refused at once."
    )
    kv_mib: int = Field(
        4096,
        ge=1,
        description="MiB of KV memory of the PyTorch decoder: 36,000 positions of DeepSeek-OCR on a CPU (FP32), "
        "72,000 on a GPU (BF16), any number of the reference model's.",
    )
    prefill_chunk: int = Field(
        256,
        ge=16,
        description="Prompt positions read in one step; running pages wait for one chunk between two tokens.",
    )
    trtllm_kv_fraction: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="Share of the GPU memory left beside the weights that the TensorRT-LLM decoder's KV memory may "
        "take; the vision engines' work space is in the rest.",
    )
    decoder_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the PyTorch decoder runs; auto is a GPU where torch sees one."
    )
    decoder_threads: int = Field(
        0,
        ge=0,
        description="Threads of the PyTorch decoder on a CPU; 0 is one per core that the process may use, and one "
        "in all for a model so small that threads wait longer than they work.",
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read from the environment at the first call.

    Raises pydantic's ValidationError for a variable that can't be read or is out of range.
    """
    return Settings()
