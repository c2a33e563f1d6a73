"""Download pretrained weights to one file, which also works on an offline machine."""

from pathlib import Path

from skipway.errors import InputError, printable
from skipway.model_factory import create_model
from skipway.utils.console import Console
from skipway.weights.hub_download import report_downloads

__all__ = ["get_weights"]


def get_weights(
    name: str, tag: str | None = None, output: str | Path | None = None, console: Console | None = None
) -> Path:
    """Save the pretrained weights of an architecture to one .safetensors file and return its path.

    Args:
        name: name from `list_models()`, which may have a tag, or a repository, as for `create_model`.
        tag: tag of the timm weights, such as "a1_in1k"; the default is the default of timm.
        output: output file; the default is NAME.safetensors or NAME.TAG.safetensors in the working directory.
        console: prints the download progress; by default, nothing is printed.

    Raises:
        InputError: the weights do not exist or cannot be downloaded, or the output file exists.
        StorageError: the file cannot be written.
    """
    console = console or Console(quiet=True)
    default = ".".join(part for part in (name.rpartition("/")[2], tag, "safetensors") if part)
    path = Path(default if output is None else output)
    if path.suffix != ".safetensors":
        raise InputError(f"invalid output: expected a .safetensors file, got {printable(path)}. Choose one with -o.")
    if path.exists():
        raise InputError(
            f"cannot save the weights to {printable(path)}: expected a new file, got one that exists. Choose another "
            "with -o."
        )
    with report_downloads(console.print):
        network = create_model(name, pretrained=tag or True)
    network.save(path)
    return path
