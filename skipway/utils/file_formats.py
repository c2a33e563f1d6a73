"""Detection of file formats by content, for error messages about unsupported files."""

import os
from typing import BinaryIO

__all__ = ["UNKNOWN", "looks_like"]

UNKNOWN = "is not a safetensors file"
_STARTS = [
    (b"\x89HDF\r\n", "is an HDF5 file, as Keras writes it (.h5)"),
    (b"GGUF", "is a GGUF file"),
    (b"\x93NUMPY", "is a NumPy array"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself"),
    (b"\x80", "is a pickle, as old versions of PyTorch write it"),
    (b"<", "is a web page or XML"),
]
_MEMBERS = [
    (b"model.weights.h5", "is a Keras file (.keras)"),
    (b"archive_format", "is an exported PyTorch program (.pt2)"),
    (b"/code/", "is a TorchScript file"),
    (b"data.pkl", "is a PyTorch file that holds a pickle"),
]


def looks_like(file: BinaryIO) -> str:
    """Describe the format of a file from its first and last MiB.

    Args:
        file: file open for reading in binary mode.

    Returns:
        A predicate such as "is a GGUF file", or UNKNOWN.

    >>> import io
    >>> looks_like(io.BytesIO(b"GGUF" + bytes(8)))
    'is a GGUF file'
    """
    file.seek(0)
    start = file.read(2**20)
    if start.startswith(b"PK"):  # the directory of a zip file is at its end
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2**20))
        both = start + file.read()
        return next((name for member, name in _MEMBERS if member in both), "is a zip file")
    if start[:1] == b"\x08" and start[2:3] in (b"\x12", b":", b"B"):  # ir_version, then producer, graph or opset
        return "looks like an ONNX model"
    known = next((name for magic, name in _STARTS if start.startswith(magic)), UNKNOWN)
    return known if start else "is an empty file"
