"""The first stage: an encoded image in, its views and text density out.

Loaded when first asked for: `text_density` alone brings NumPy and no image or settings library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtprune.preprocess.density import text_density as text_density
    from rtprune.preprocess.image import decode as decode
    from rtprune.preprocess.options import PageOptions as PageOptions
    from rtprune.preprocess.options import check_options as check_options
    from rtprune.preprocess.views import Views as Views
    from rtprune.preprocess.views import make_views as make_views

_HOMES = {
    "PageOptions": "options",
    "Views": "views",
    "check_options": "options",
    "decode": "image",
    "make_views": "views",
    "text_density": "density",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
