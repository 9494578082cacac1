"""Images of every kind -> the encoded bytes that go over the wire, checked against the limits."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.settings import ClientSettings

ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any]
)
"""A path, encoded bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB."""

# Formats that hold pixels and nothing that runs; Pillow would start Ghostscript for an EPS file.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")

# What Pillow's decoders raise for files that are broken.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

_ORIENTATION = 0x0112  # EXIF
_UPRIGHT = 1


def encode_image(image: ImageInput, settings: ClientSettings) -> bytes:
    """The image as an encoded file: files and bytes as they are, pictures and arrays as PNG.

    Raises `InvalidRequest`, one sentence, for what is no image, is empty or is over a limit.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _checked(bytes(image), "The image", settings)
    if isinstance(image, (str, os.PathLike)):
        return read_file(Path(image), settings)
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise InvalidRequest(
            f"An image is a path, bytes, a PIL image or a uint8 array, not {type(image).__name__}."
        )
    _check_pixels(image.size, "The image", settings)
    return _checked(to_png(image), "The image as PNG", settings)


def read_file(path: Path, settings: ClientSettings) -> bytes:
    """Bytes of an image file; the size is checked before the file is read."""
    try:
        if path.is_dir():
            raise InvalidRequest(f"{path} is a folder, not an image.", "Use `batch` for folders.")
        _check_bytes(path.stat().st_size, str(path), settings)
        return _checked(path.read_bytes(), str(path), settings)
    except FileNotFoundError:
        raise InvalidRequest(f"There is no file {path}.") from None
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror or error}.") from None


def to_png(image: Image.Image) -> bytes:
    """PNG of a picture, upright; fast rather than small, since it's sent once."""
    picture = flatten(image)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def flatten(image: Image.Image) -> Image.Image:
    """The picture upright, in RGB or grey, transparency on white, 16-bit samples as 8-bit."""
    turned = image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
    picture = ImageOps.exif_transpose(image) if turned else image
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture, np.uint16) >> 8).astype(np.uint8))
    coloured = picture.mode != "P" or picture.palette is not None  # Pillow asks a palette that isn't there
    if coloured and picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")


def open_image(data: bytes, settings: ClientSettings, name: str = "The image") -> Image.Image:
    """The decoded picture, upright, in RGB or grey; `InvalidRequest` for none, or, before it's decoded, too large."""
    with inspect_image(data, name) as picture:
        _check_pixels(picture.size, name, settings)
        try:
            return flatten(picture.copy())
        except UNREADABLE as error:
            raise InvalidRequest(f"{name} can't be decoded: {error}.") from None


def inspect_image(data: bytes, name: str) -> Image.Image:
    """The picture with its header read and nothing else; `InvalidRequest` for an unknown format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limits follow, and oddities are no errors
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidRequest(
            f"{name} is no image of a known format.", f"Known are {', '.join(FORMATS)}."
        ) from None
    except UNREADABLE as error:
        raise InvalidRequest(f"{name} can't be decoded: {error}.") from None


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8:
        raise InvalidRequest(f"An image array must be uint8, not {array.dtype}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InvalidRequest(
            f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _checked(data: bytes, name: str, settings: ClientSettings) -> bytes:
    if not data:
        raise InvalidRequest(f"{name} is empty.")
    if data.startswith(b"%PDF-"):
        raise InvalidRequest(f"{name} is a PDF, not an image.", "Read it with ocr_document().")
    _check_bytes(len(data), name, settings)
    return data


def _check_bytes(size: int, name: str, settings: ClientSettings) -> None:
    if size > settings.max_image_bytes:
        raise InvalidRequest(
            f"{name} has {size / 2**20:.1f} MiB, more than the limit of "
            f"{settings.max_image_bytes / 2**20:.1f} MiB.",
            "Save it smaller or as JPEG, or raise DEEPSEEK_OCR_MAX_IMAGE_BYTES here and the server's limit.",
        )


def _check_pixels(size: tuple[int, int], name: str, settings: ClientSettings) -> None:
    width, height = size
    if width * height > settings.max_image_pixels:
        raise InvalidRequest(
            f"{name} has {width} x {height} pixels, more than the limit of "
            f"{settings.max_image_pixels / 1e6:.0f} million.",
            "Scale it down: no mode looks at more than 1920 x 1920 pixels.",
        )
