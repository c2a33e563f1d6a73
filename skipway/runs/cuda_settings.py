"""Settings of CUDA for a run: deterministic algorithms, or those that cuDNN measures to be fastest.

Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from skipway.errors import InputError
from skipway.utils.devices import device_kind

__all__ = ["cuda_settings", "gpu_facts", "refuse_nondeterministic"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED_WORKSPACE = ":4096:8"  # one of the two values with which cuBLAS is deterministic, the faster one
_NO_DETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")
_DRIVER = Path("/proc/driver/nvidia/version")


@contextmanager
def cuda_settings(device: str, *, deterministic: bool) -> Iterator[None]:
    """Set the algorithms of CUDA, and restore the settings when the context ends. Nothing changes on other devices.

    Args:
        device: device of the run.
        deterministic: choose algorithms whose results are equal in each run; otherwise cuDNN measures the fastest ones.
    """
    if device_kind(device) != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = cudnn.benchmark, os.environ.get(_WORKSPACE)
    if deterministic:
        os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACE)
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


@contextmanager
def refuse_nondeterministic() -> Iterator[None]:
    """Name the operation that has no deterministic algorithm, if torch stops at one.

    Raises:
        InputError: an operation of the run has no deterministic algorithm.
    """
    try:
        yield
    except RuntimeError as error:
        match = _NO_DETERMINISTIC.search(str(error))
        if match is None:
            raise
        raise InputError(
            f"cannot train with --deterministic: expected deterministic algorithms on CUDA, got {match[1]}, which has "
            "none. Choose another --model, or drop --deterministic."
        ) from error


def gpu_facts(device: str) -> dict[str, str]:
    """Return name, driver, cuDNN and TF32 of a CUDA device, on which the last bits of a run depend; {} for others.

    Args:
        device: device of the run.
    """
    if device_kind(device) != "cuda":
        return {}
    allowed = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    places = [name for name, value in zip(("convolutions", "matrix products"), allowed, strict=True) if value == "tf32"]
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cudnn": str(torch.backends.cudnn.version()),
        "tf32": " and ".join(places) or "off",
    }


def _driver() -> str:
    """Return the version of the NVIDIA driver on Linux, or "unknown"."""
    try:
        match = re.search(r"Kernel Module\D*\s([\d.]+)", _DRIVER.read_text())
    except OSError:
        match = None
    return match[1] if match else "unknown"
