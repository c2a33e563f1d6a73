"""Collection of the warnings that Pillow raises during a decode, per image instead of on the terminal.

Warning filters are global to the process, but decoding runs in threads, and other code (pytest, workers of
scikit-learn) restores filters at any time. While a thread decodes, the name `warnings` in Pillow's modules is therefore
replaced by a proxy. The proxy collects the warnings of decoding threads and forwards all others. After the last decode,
the modules are restored.
"""

import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from PIL import Image

__all__ = ["CollectedWarnings", "collect_warnings", "number_in"]

_NAMES = ("Bmp", "Gif", "Ico", "Jpeg", "Mpo", "Png", "Tiff", "WebP")
_PLUGINS = [import_module(f"PIL.{name}ImagePlugin") for name in _NAMES]
_MODULES = [module for module in (Image, *_PLUGINS) if hasattr(module, "warnings")]
_OTHER_NAMES = ("numpy.lib._format_impl", "pydicom.misc", "tifffile.tifffile")  # readers of other formats, if imported


class CollectedWarnings:
    """Collector of the warnings of one decode.

    Args:
        max_pixels: maximum pixels of an image; a warning about a larger one raises DecompressionBombError.
    """

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels
        self.any_damage = False  # all warnings, except for large images, report damaged metadata

    def add(self, message: object, category: Any) -> None:
        """Record a warning."""
        if category is not Image.DecompressionBombWarning:
            self.any_damage = True
        elif number_in(message) > self.max_pixels:
            raise Image.DecompressionBombError(message)


class _ThreadWarnings(threading.local):
    """Proxy of the module `warnings`: collect in decoding threads, forward in all others."""

    collected: CollectedWarnings | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, category: Any = None, stacklevel: int = 1, **options: Any) -> None:
        if self.collected is None:
            warnings.warn(message, category, stacklevel + 1, **options)
        else:
            self.collected.add(message, category)


class _Installation:
    """Context manager that installs the proxy in Pillow's modules, with a count of its users."""

    def __init__(self, proxy: _ThreadWarnings):
        self.proxy = proxy
        self.lock, self.num_users = threading.Lock(), 0
        self.originals: dict[ModuleType, Any] = {}

    def __enter__(self) -> None:
        with self.lock:
            for module in (*_MODULES, *(sys.modules[name] for name in _OTHER_NAMES if name in sys.modules)):
                if module not in self.originals and hasattr(module, "warnings"):
                    self.originals[module] = vars(module)["warnings"]
                    vars(module)["warnings"] = self.proxy
            self.num_users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.num_users -= 1
            if self.num_users == 0:
                for module, original in self.originals.items():
                    vars(module)["warnings"] = original
                self.originals = {}


_THREAD_WARNINGS = _ThreadWarnings()
_INSTALLATION = _Installation(_THREAD_WARNINGS)


@contextmanager
def collect_warnings(max_pixels: int) -> Iterator[CollectedWarnings]:
    """Collect the warnings of Pillow in this thread; other threads are not affected.

    Args:
        max_pixels: maximum pixels of an image; a warning about a larger one raises DecompressionBombError.
    """
    with _INSTALLATION:
        outer = _THREAD_WARNINGS.collected
        _THREAD_WARNINGS.collected = collected = CollectedWarnings(max_pixels)
        try:
            yield collected
        finally:
            _THREAD_WARNINGS.collected = outer


def number_in(message: object) -> int:
    """Return the first integer in a message, or 0 if it has none.

    >>> number_in("Image size (1200 pixels) exceeds limit of 1000 pixels")
    1200
    """
    return int((re.search(r"\d+", str(message)) or "0")[0])
