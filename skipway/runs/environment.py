"""Environment of a run for env.json: versions, hardware, and the command that reproduces the run."""

import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from skipway.kernels.layer_dispatch import kernel_status
from skipway.runs.cuda_settings import gpu_facts
from skipway.runs.recipe import Recipe
from skipway.utils.devices import device_name

__all__ = ["describe_environment", "processor", "repeat_command"]


def describe_environment(recipe: Recipe, device: str, precision: str, network: str) -> dict[str, Any]:
    """Return the values of env.json.

    Args:
        recipe: options of the run.
        device: "cpu", or an accelerator such as "cuda".
        precision: "bf16", "fp16" or "fp32".
        network: repr of the network.
    """
    return {
        "skipway": version("skipway"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "precision": precision,
        "kernels": kernel_status(),
        **{name: value for name, value in gpu_facts(device).items() if name != "gpu"},
        "command": repeat_command(recipe),
        "network": network,
    }


def processor() -> str:
    """Return the name of the processor as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def repeat_command(recipe: Recipe) -> str:
    """Return the command line that reproduces a run."""
    words = ["skipway", "train", *([recipe.data] if recipe.data else [])]
    for name, value in recipe.changed().items():
        if name in ("data", "output", "name") or value is None:
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)
