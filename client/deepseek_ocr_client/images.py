"""Images of every kind -> the encoded bytes that go over the wire, checked against the limits."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepseek_ocr_client import imaging
from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.settings import ClientSettings

ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any]
)
"""A path, encoded bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB."""

_ORIENTATION = 0x0112  # EXIF
_ANY_ASPECT = 10**9  # the server's limit is its own
_CONVERTED = ("HEIC", "AVIF")  # few servers read them
_QUALITY = 95  # of a JPEG made from these


def encode_image(image: ImageInput, settings: ClientSettings) -> bytes:
    """The image as an encoded file: files and bytes as they are, pictures and arrays as PNG.

    Raises `InvalidRequest`, one sentence, for what is no image, is empty or is over a limit.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return sendable(_checked(bytes(image), "The image", settings), "The image", settings)
    if isinstance(image, (str, os.PathLike)):
        return sendable(read_file(Path(image), settings), str(image), settings)
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


def sendable(data: bytes, name: str, settings: ClientSettings) -> bytes:
    """An image file as it is; HEIC and AVIF as JPEG, or an `InvalidRequest` that names the extra for it."""
    if imaging.kind_of(data) not in _CONVERTED:
        return data
    buffer = io.BytesIO()
    open_image(data, settings, name).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def to_png(image: Image.Image) -> bytes:
    """PNG of a picture, upright; fast rather than small, since it's sent once."""
    picture = flatten(image)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def flatten(image: Image.Image) -> Image.Image:
    """The picture upright, in RGB or grey, transparency on white, samples as 8 bits; or `InvalidRequest`."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that can't be read, in one of many ways, is as none
        orientation = 1
    if image.mode == "P" and image.palette is None:
        image = image.convert("L")  # Pillow asks a palette that isn't there
    try:
        return imaging.upright(imaging.grey_or_rgb(image), orientation)
    except imaging.ImageError as error:
        raise InvalidRequest(str(error)) from None


def open_image(data: bytes, settings: ClientSettings, name: str = "The image", page: int = 0) -> Image.Image:
    """The decoded picture, upright, in RGB or grey, as the server decodes it; `page`, from 0, is a TIFF's.

    `InvalidRequest` for none, or, before it's decoded, too large.
    """
    limits = imaging.Limits(settings.max_image_pixels, settings.max_decoded_bytes, _ANY_ASPECT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities are no errors
            return imaging.decode(data, limits, page)
    except imaging.ImageError as error:
        raise InvalidRequest(f"{name} can't be decoded: {error}") from None
    except MemoryError:
        raise InvalidRequest(f"{name} can't be decoded: there is not enough free memory.") from None


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
