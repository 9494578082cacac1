"""What a batch reads: files, folders and patterns -> documents, each with a name of its own."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr_client.documents import SUFFIXES
from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.output import safe_name


@dataclass(frozen=True, slots=True)
class Source:
    """A document to read; `name` is its path in the output folder, without a suffix, with / between parts."""

    path: Path
    name: str

    def digest(self) -> str:
        """SHA-256 of the file in hexadecimal, so that a file that changed is read again."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise InvalidRequest(f"{self.path} can't be read: {error.strerror or error}.") from None
        return digest.hexdigest()


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Documents of files, folders (searched whole) and patterns (`scans/**/*.pdf`), each once, in order.

    Raises `InvalidRequest` for an input that isn't there and a folder or pattern without documents.
    """
    found: dict[Path, str] = {}
    for written in inputs:
        documents = list(_expand(written))
        if not documents:
            raise InvalidRequest(
                f"There are no PDFs or images in {written}.", f"Looked for {', '.join(sorted(SUFFIXES))}."
            )
        for path, name in documents:
            found.setdefault(path.resolve(), name)
    return _unique([Source(path, name) for path, name in found.items()])


def unread_files(inputs: Iterable[str]) -> list[Path]:
    """Files of the folders among the inputs that are no documents by their names, hidden ones aside."""
    folders = (path for path in (Path(written).expanduser() for written in inputs) if path.is_dir())
    return [
        file
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not _is_document(file) and not _is_hidden(file.relative_to(folder))
    ]


def _expand(written: str) -> Iterator[tuple[Path, str]]:
    path = Path(written).expanduser()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            if _is_document(file) and not _is_hidden(relative):
                yield file, _name(relative)
    elif path.exists():
        yield path, _name(Path(path.name))
    elif glob.has_magic(written):
        for match in sorted(glob.glob(str(path), recursive=True)):
            if _is_document(Path(match)):
                yield Path(match), _name(Path(Path(match).name))
    else:
        raise InvalidRequest(f"There is no file {written}.")


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _name(relative: Path) -> str:
    return "/".join([*(safe_name(part) for part in relative.parts[:-1]), safe_name(relative.stem)])


def _unique(sources: list[Source]) -> list[Source]:
    """Names made different: `report` twice becomes `report-pdf` and `report-png`, then `report-pdf-2`."""
    counts = Counter(source.name.casefold() for source in sources)
    taken: set[str] = set()
    result = []
    for source in sources:
        name = source.name
        if counts[name.casefold()] > 1:
            name = f"{name}-{safe_name(source.path.suffix.lower()[1:] or 'file')}"
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.casefold())
        result.append(Source(source.path, candidate))
    return result
