"""A request's image: base64 or a file's bytes, within the server's limits -> a picture."""

from __future__ import annotations

import binascii

from PIL import Image

from rtprune.errors import InvalidInput, Unavailable
from rtprune.preprocess import imaging
from rtprune.settings import Settings

imaging.quiet()


def decode(data: bytes, settings: Settings) -> Image.Image:
    """Decode an encoded image, upright, as `imaging.decode` says; of a TIFF the first page.

    Args:
        data: the file's bytes, or those bytes in base64, which is how JSON carries them: the standard alphabet
            with padding (RFC 4648, section 4), white space allowed, a `data:...;base64,` before it too. What
            such a URL says of its type is not looked at; no other URL is read.
        settings: `max_image_bytes`, `max_pixels`, `max_decoded_bytes` and `max_aspect` are checked before any
            pixel is decoded.

    Raises:
        InvalidInput: one sentence that says what is wrong with the image.
        Unavailable: the memory for an image within the limits could not be had.
    """
    limits = imaging.Limits(settings.max_pixels, settings.max_decoded_bytes, settings.max_aspect)
    try:
        return imaging.decode(_file(bytes(data), settings), limits)
    except imaging.ImageError as error:
        raise InvalidInput(str(error)) from None
    except MemoryError:
        raise Unavailable("The server has not enough free memory to decode this image.") from None


def _file(data: bytes, settings: Settings) -> bytes:
    """The file's bytes, taken out of base64 where they are in it; their number checked."""
    limit = settings.max_image_bytes
    if (
        imaging.kind_of(data) is None and len(data) <= limit * 1.4 + 256
    ):  # 4 characters for 3 bytes, and line breaks
        data = _from_base64(data)
    if not data.strip():
        raise InvalidInput("The image is empty: it has no bytes.")
    if len(data) > limit:
        raise InvalidInput(f"The image has {len(data)} bytes; at most {limit} are allowed.")
    return data


def _from_base64(data: bytes) -> bytes:
    """What base64 text holds; anything else as it is."""
    text = data
    if data[:5].lower() == b"data:":
        head, comma, text = data.partition(b",")
        if not comma or not head.lower().endswith(b";base64"):
            raise InvalidInput("The image is a data: URL without base64; send the file or its base64 text.")
    try:
        return binascii.a2b_base64(text.translate(None, b" \t\r\n"), strict_mode=True)
    except binascii.Error:
        if text is not data:
            raise InvalidInput("The image is a data: URL whose base64 text is broken.") from None
        return data
