"""Pillow's warnings during a decode: collected for the image that is being decoded, instead of shown.

Filters of `warnings` would not do: they are one list for the whole process, while decoding runs in threads, and
whoever restores them elsewhere (pytest, scikit-learn's workers) drops ours in between. So the name `warnings` in
Pillow's modules leads to a stand-in while at least one thread decodes, and only there a warning is collected. When
the last decode ends, the modules are as they were.
"""

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from PIL import Image

__all__ = ["CollectedWarnings", "collect_warnings", "number_in"]

_PLUGINS = [import_module(f"PIL.{name}ImagePlugin") for name in ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")]
_MODULES = [module for module in (Image, *_PLUGINS) if hasattr(module, "warnings")]


class CollectedWarnings:
    """Collects what Pillow warns of during one decode.

    Args:
        max_pixels: a warning of a larger image becomes Pillow's DecompressionBombError.
    """

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels
        self.any_damage = False  # any warning but that of a large image: they are all of damaged metadata

    def add(self, message: object, category: Any) -> None:
        """Take one warning in."""
        if category is not Image.DecompressionBombWarning:
            self.any_damage = True
        elif number_in(message) > self.max_pixels:
            raise Image.DecompressionBombError(message)


class _ThreadWarnings(threading.local):
    """Stands in for the module `warnings`: collects in a thread that decodes, hands on to it in any other."""

    collected: CollectedWarnings | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, category: Any = None, stacklevel: int = 1, **options: Any) -> None:
        if self.collected is None:
            warnings.warn(message, category, stacklevel + 1, **options)
        else:
            self.collected.add(message, category)


class _Installation:
    """Puts the stand-in into Pillow's modules while any thread needs it."""

    def __init__(self, stand_in: _ThreadWarnings):
        self.stand_in = stand_in
        self.lock, self.num_users = threading.Lock(), 0
        self.originals: dict[ModuleType, Any] = {}

    def __enter__(self) -> None:
        with self.lock:
            if self.num_users == 0:
                self.originals = {module: vars(module)["warnings"] for module in _MODULES}
                for module in _MODULES:
                    vars(module)["warnings"] = self.stand_in
            self.num_users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.num_users -= 1
            if self.num_users == 0:
                for module, original in self.originals.items():
                    vars(module)["warnings"] = original


_THREAD_WARNINGS = _ThreadWarnings()
_INSTALLATION = _Installation(_THREAD_WARNINGS)


@contextmanager
def collect_warnings(max_pixels: int) -> Iterator[CollectedWarnings]:
    """Collect what Pillow warns of in this thread; other threads see their warnings as before."""
    with _INSTALLATION:
        outer = _THREAD_WARNINGS.collected
        _THREAD_WARNINGS.collected = collected = CollectedWarnings(max_pixels)
        try:
            yield collected
        finally:
            _THREAD_WARNINGS.collected = outer


def number_in(message: object) -> int:
    """Return the first whole number in a message of Pillow, 0 if there is none."""
    return int((re.search(r"\d+", str(message)) or "0")[0])
