"""PDF files for tests, written by hand: text pages, rotation, odd sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

A4 = (595, 842)
LOCKED = (Path(__file__).parent / "locked.pdf").read_bytes()
"""`make_pdf([PageSpec(["secret"])])`, encrypted (standard handler, 40-bit RC4) with the password sesame."""


@dataclass(frozen=True)
class PageSpec:
    """A page: lines of text from the top, its size in points, its rotation."""

    lines: Sequence[str] = ()
    size: tuple[float, float] = A4
    rotate: int = 0

    def content(self) -> bytes:
        top = self.size[1] - 80
        parts = ["BT /F1 24 Tf 30 TL", f"60 {top} Td"]
        for line in self.lines:
            escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            parts.append(f"({escaped}) Tj T*")
        return " ".join([*parts, "ET"]).encode()


def make_pdf(pages: Iterable[PageSpec]) -> bytes:
    """A PDF of `pages`."""
    specs = list(pages)
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(specs)))
    objects: list[bytes] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(specs)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, spec in enumerate(specs):
        width, height = spec.size
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Rotate {spec.rotate} "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * index} 0 R >>".encode()
        )
        content = spec.content()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return assemble(objects)


def assemble(objects: Sequence[bytes]) -> bytes:
    """A PDF of numbered objects, the first of which is the catalog."""
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def text_pages(count: int) -> bytes:
    """A document whose pages say which page they are."""
    return make_pdf(PageSpec([f"page {number}", "of a longer document"]) for number in range(1, count + 1))


def stream(content: bytes, more: str = "") -> bytes:
    """A stream object."""
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (more.encode(), len(content), content)


def one_page(content: bytes, *more: bytes, catalog: str = "", page: str = "", resources: str = "") -> bytes:
    """A PDF of one page of 384 x 384 points: catalog 1, pages 2, page 3, content 4, and `more` from 5 on."""
    return assemble(
        [
            f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 384 384] /Contents 4 0 R "
            f"/Resources << {resources} >> {page} >>".encode(),
            stream(content),
            *more,
        ]
    )
