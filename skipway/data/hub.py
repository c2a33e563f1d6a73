"""Data sets by name from the Hugging Face Hub: downloaded once, kept in its cache, read as parquet files."""

import logging
from pathlib import Path

from skipway.errors import InputError, printable

__all__ = ["HUB_NAMES", "hub_folder"]

# name -> (repository, revision, which files). The converted branch holds parquet of repositories that are scripts.
HUB_NAMES = {
    "cifar10": ("uoft-cs/cifar10", "main", "plain_text/*.parquet"),
    "mnist": ("ylecun/mnist", "main", "mnist/*.parquet"),
    "imagenette": ("frgfm/imagenette", "refs/convert/parquet", "160px/*/*.parquet"),
}


def hub_folder(name: str) -> Path:
    """The local folder of a named set or of `hf:org/name`, downloaded where it is not here yet."""
    repository, revision, pattern = HUB_NAMES.get(name, (name.removeprefix("hf:"), "main", "*.parquet"))
    if repository.count("/") != 1:
        raise InputError(f"{printable(name)} is no data set of the Hub; write hf:org/name, as in hf:uoft-cs/cifar10")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=[pattern])
    except RepositoryNotFoundError:
        raise InputError(
            f"the Hub has no data set {printable(repository)} that you may read; check the name, or log in "
            "with `hf auth`"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{printable(name)} could not be downloaded ({printable(type(error).__name__)}: is this machine offline?); "
            "give a folder or parquet file that is here, or use digits, which needs no download"
        ) from None
    base = Path(folder)
    while pattern.count("/") and "*" not in pattern.split("/")[0]:
        head, _, pattern = pattern.partition("/")
        base = base / head
    return base
