"""Fetch pretrained weights into one file, for this machine or for another one that is offline."""

from pathlib import Path

from skipway.errors import InputError, printable
from skipway.model_factory import create_model
from skipway.utils.console import Console
from skipway.weights.hub_download import report_downloads

__all__ = ["get_weights"]


def get_weights(
    name: str, tag: str | None = None, output: str | Path | None = None, console: Console | None = None
) -> Path:
    """Write the pretrained weights of the network `name` to one .safetensors file and return its path.

    Args:
        name: one of `list_models()`.
        tag: which of timm's weights, such as "a1_in1k"; default: timm's own choice.
        output: the file; default: NAME.safetensors or NAME.TAG.safetensors in the working folder.
        console: where the download is reported; default: nowhere.

    Raises:
        InputError: there are no such weights, they cannot be reached, or the file exists.
        StorageError: the file cannot be written.
    """
    console = console or Console(quiet=True)
    default = ".".join(part for part in (name, tag, "safetensors") if part)
    path = Path(default if output is None else output)
    if path.suffix != ".safetensors":
        raise InputError(f"weights are written to a .safetensors file, not to {printable(path)}; give one with -o")
    if path.exists():
        raise InputError(f"{printable(path)} exists already; remove it, or give another file with -o")
    with report_downloads(console.print):
        network = create_model(name, pretrained=tag or True)
    network.save(path)
    return path
