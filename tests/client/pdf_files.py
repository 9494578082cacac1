"""PDF files for tests, written by hand: text pages, rotation, odd sizes, encryption, breakage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

A4 = (595, 842)
_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


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


def make_pdf(pages: Iterable[PageSpec], password: str = "") -> bytes:
    """A PDF of `pages`, encrypted (standard handler, 40-bit RC4) where a password is given."""
    specs = list(pages)
    file_id = _md5(b"test")
    key, owner, user = _encryption(password.encode("latin-1"), file_id)
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
        if password:
            content = _rc4(_object_key(key, 5 + 2 * index), content)
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    trailer = f"/Root 1 0 R /ID [<{file_id.hex()}> <{file_id.hex()}>]"
    if password:
        objects.append(
            f"<< /Filter /Standard /V 1 /R 2 /P -4 /O <{owner.hex()}> /U <{user.hex()}> >>".encode()
        )
        trailer += f" /Encrypt {len(objects)} 0 R"
    return _assemble(objects, trailer)


def text_pages(count: int) -> bytes:
    """A document whose pages say which page they are."""
    return make_pdf(PageSpec([f"page {number}", "of a longer document"]) for number in range(1, count + 1))


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _assemble(objects: Sequence[bytes], trailer: str) -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += f"trailer\n<< /Size {len(objects) + 1} {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def _encryption(password: bytes, file_id: bytes) -> tuple[bytes, bytes, bytes]:
    """(file key, /O, /U) of the standard security handler, revision 2 (PDF 1.7, 7.6.3)."""
    padded = (password + _PAD)[:32]
    owner = _rc4(_md5(padded)[:5], padded)
    key = _md5(padded + owner + (-4 & 0xFFFFFFFF).to_bytes(4, "little") + file_id)[:5]
    return key, owner, _rc4(key, _PAD)


def _object_key(key: bytes, number: int) -> bytes:
    return _md5(key + number.to_bytes(3, "little") + b"\0\0")[:10]


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
