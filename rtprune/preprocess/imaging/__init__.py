"""The decoder of page images: Pillow behind checks of what a file declares, the same in the server and in the client.

The client's distribution has a copy, `deepseek_ocr_client/imaging`; a test holds both equal, byte for byte.
"""

from .containers import pages as tiff_pages
from .decoder import FORMATS, Limits, decode, grey_or_rgb, kind_of, quiet, upright
from .errors import ImageError

__all__ = [
    "FORMATS",
    "ImageError",
    "Limits",
    "decode",
    "grey_or_rgb",
    "kind_of",
    "quiet",
    "tiff_pages",
    "upright",
]
