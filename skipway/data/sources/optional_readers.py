"""Packages of optional image formats, imported when a file needs them."""

import logging
from importlib import import_module
from typing import Any

from skipway.data.sources.image_formats import BadImage

__all__ = ["EXTRA_OF", "optional_module"]

EXTRA_OF = {"HEIF": "heif", "DICOM": "dicom", "TIFF": "tiff"}  # format -> the extra of skipway that reads it
_NAMES = {"HEIF": "HEIC", "DICOM": "DICOM", "TIFF": "TIFF of several bands"}


def optional_module(name: str, file_format: str) -> Any:
    """Import the package that reads a format.

    Raises:
        BadImage: the package is not installed.
    """
    try:
        module = import_module(name)
    except ImportError as error:
        raise BadImage(f"{_NAMES[file_format]}: install skipway[{EXTRA_OF[file_format]}]") from error
    logging.getLogger(name).setLevel(logging.CRITICAL)  # its messages repeat the errors, which are reported per file
    return module
