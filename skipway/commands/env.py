"""Report the environment: versions, processor, precision and extras."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from skipway.kernels.layer_dispatch import kernel_status
from skipway.runs.environment import processor
from skipway.utils.devices import available_threads, device_for, device_name, device_names, has_bf16, has_fp16

__all__ = ["EXTRAS", "environment_facts", "environment_table"]

EXTRAS = {
    "parquet": "pyarrow",
    "excel": "openpyxl",
    "export": "onnxruntime",
    "openvino": "openvino",
    "heif": "pillow_heif",
    "dicom": "pydicom",
    "tiff": "tifffile",
}


def environment_table() -> str:
    """Return versions, processor, threads, precision and extras, one per line."""
    return "\n".join(f"{name:<16}{value}" for name, value in environment_facts().items())


def environment_facts() -> dict[str, str]:
    """Return versions, processor, threads, precision and extras by name."""
    threads = available_threads()
    device = device_for("auto")
    half = "fp16" if has_fp16(device) else "fp32"
    return {
        "skipway": version("skipway"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{threads.count}, limited by {threads.reason}",
        "gpu": ", ".join(f"{device} ({device_name(device)})" for device in device_names()[1:]) or "none",
        "precision": "bf16" if has_bf16(device) else half,
        "kernels": kernel_status(),
        **{name: _version(name) for name in ("torch", "pillow", "safetensors", "scikit-learn", "numpy")},
        **{f"{name} extra": _extra(module, name) for name, module in EXTRAS.items()},
    }


def _extra(module: str, name: str) -> str:
    return "installed" if find_spec(module) else f"not installed: pip install 'skipway[{name}]'"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
