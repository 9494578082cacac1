"""The engines folder's manifest: what export wrote, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from rtprune.errors import EngineError

MANIFEST = "manifest.json"
FORMAT: Literal[1] = 1
"""Raised when a reader of an older manifest would misread a newer one."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """One file of the folder. `path`: relative to it, with forward slashes. `bytes`: its size."""

    path: str
    sha256: Sha256
    bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
            raise ValueError(f"the path {path!r} leads out of the folder")
        return path


class VisionEntry(_Part):
    """The vision encoder for one input `side` in px. `max_batch`: images that it takes at once, 0 for any number.

    `companions`: files that the first one needs beside it. `built_for`: what a TensorRT plan is keyed by.
    """

    side: int = Field(gt=0, multiple_of=64)
    engine: Literal["onnxruntime", "tensorrt"]
    precision: Precision
    file: FileEntry
    companions: tuple[FileEntry, ...] = ()
    max_batch: int = Field(0, ge=0)
    built_for: dict[str, str] = Field(default_factory=dict)


class DecoderEntry(_Part):
    """The decoder. `folder`: where its files lie, relative to the manifest's."""

    engine: Literal["pytorch", "tensorrt_llm"]
    precision: Precision
    folder: str
    files: tuple[FileEntry, ...] = Field(min_length=1)
    built_for: dict[str, str] = Field(default_factory=dict)


class Manifest(_Part):
    """What an engines folder holds.

    model: the checkpoint's name.
    hidden_size: channels of a visual token. context_length: positions of prompt and output together.
    special_tokens: ids by the name that the tokenizer gives them. modes: those that `vision` serves.
    visual_tokens: the file with `image_newline` and `view_seperator`, float32 (hidden_size,) each.
    sources: sha256 of every file of the checkpoint that was read. versions: of the programs that wrote it.
    """

    format: Literal[1] = FORMAT
    family: str
    model: str
    target: Literal["cpu", "gpu"]
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    context_length: int = Field(gt=0)
    special_tokens: dict[str, int]
    modes: tuple[str, ...] = Field(min_length=1)
    vision: tuple[VisionEntry, ...] = Field(min_length=1)
    visual_tokens: FileEntry
    tokenizer_file: FileEntry
    decoder: DecoderEntry
    sources: dict[str, Sha256] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _one_entry_a_side(self) -> Self:
        sides = [entry.side for entry in self.vision]
        if len(set(sides)) != len(sides):
            raise ValueError("a side has two vision entries")
        return self

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder`/manifest.json and check that every file it names is there with its size.

        Raises:
            EngineError: there is no manifest, it can't be read, or a file is missing or has another size.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EngineError(
                f"{folder} holds no engines (no {MANIFEST}); write them with `python -m export`."
            ) from None
        except (OSError, ValueError) as error:
            raise EngineError(f"{path} can't be read: {error}.") from error
        manifest = cls.parse(content, path)
        manifest._folder = folder.absolute()
        for entry in manifest.files():
            manifest._check_size(entry)
        return manifest

    @classmethod
    def parse(cls, content: Any, path: Path) -> Manifest:
        """Check a manifest's content; `path` is named in the error. Raises EngineError."""
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version != FORMAT:
            raise EngineError(
                f"{path} has format {version} and this program reads format {FORMAT}; export again."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the manifest"
            raise EngineError(f"{path} is not a valid manifest: {where}: {first['msg']}.") from error

    @property
    def folder(self) -> Path:
        """The engines folder, absolute; the current one for a manifest that `load` did not read."""
        return self._folder

    @property
    def sides(self) -> tuple[int, ...]:
        """Input sides in pixels that there is an encoder for, ascending."""
        return tuple(sorted(entry.side for entry in self.vision))

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer.json is, absolute once loaded from a folder."""
        return self.path(self.tokenizer_file)

    def path(self, entry: FileEntry) -> Path:
        """Where a file is, absolute once the manifest was loaded from a folder."""
        return self._folder / entry.path

    def files(self) -> tuple[FileEntry, ...]:
        """Every file that the manifest names, each path once."""
        vision = [file for entry in self.vision for file in (entry.file, *entry.companions)]
        every = (*vision, self.visual_tokens, self.tokenizer_file, *self.decoder.files)
        return tuple({file.path: file for file in every}.values())

    def verify_hashes(self) -> None:
        """Read every file and compare its SHA-256. Raises EngineError for the first that changed or is missing."""
        for entry in self.files():
            self._check_size(entry)
            if sha256_of(self.path(entry)) != entry.sha256:
                raise EngineError(f"{self.path(entry)} has changed since it was exported; export again.")

    def facts(self) -> dict[str, Any]:
        """What a server logs at its start, without the single files; `megabytes` (10^6 bytes) of all of them."""
        return {
            "family": self.family,
            "model": self.model,
            "target": self.target,
            "modes": ",".join(self.modes),
            "vision": {str(v.side): f"{v.engine} {v.precision}" for v in self.vision},
            "decoder": f"{self.decoder.engine} {self.decoder.precision}",
            "megabytes": round(sum(file.bytes for file in self.files()) / 1e6, 1),
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "sources": self.sources,
            "versions": self.versions,
        }

    def _check_size(self, entry: FileEntry) -> None:
        path = self.path(entry)
        try:
            size = path.stat().st_size
        except OSError:
            raise EngineError(f"{path} is missing though the manifest names it; export again.") from None
        if size != entry.bytes:
            raise EngineError(f"{path} has {size} bytes and the manifest says {entry.bytes}; export again.")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits. Raises OSError where it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
