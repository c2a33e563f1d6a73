"""Data sets by name from the Hugging Face Hub: downloaded once, kept in its cache, read as parquet files."""

import errno
import logging
from pathlib import Path

from skipway.errors import InputError, StorageError, printable
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = ["HUB_NAMES", "NO_ROOM", "hub_folder"]

_CONVERTED = "refs/convert/parquet"  # the Hub's own parquet of repositories that hold scripts or loose images

# name -> (repository, revision, folder in it)
HUB_NAMES = {
    "cifar10": ("uoft-cs/cifar10", "main", "plain_text"),
    "mnist": ("ylecun/mnist", "main", "mnist"),
    "imagenette": ("frgfm/imagenette", _CONVERTED, "160px"),
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def hub_folder(name: str) -> Path:
    """The local folder of a named set, of `hf:org/name` or of `hf:org/name/folder`, downloaded where it is not here."""
    if name in HUB_NAMES:
        repository, revision, folder = HUB_NAMES[name]
        revisions: tuple[str, ...] = (revision,)
    else:
        organisation, _, rest = name.removeprefix("hf:").partition("/")
        short, _, folder = rest.partition("/")
        repository, revisions = f"{organisation}/{short}", ("main", _CONVERTED)
    refused = None
    for revision in revisions:
        pattern = f"{folder}/*.parquet" if folder else "*.parquet"
        try:  # without the Hub, a revision that had no such file is not in the cache, while the next one may be
            snapshot = _downloaded(repository, revision, pattern, cached=refused is not None)
        except InputError as error:
            refused = refused or error
            continue
        if snapshot and any((snapshot / folder).rglob("*.parquet")):
            return snapshot / folder
    raise refused or InputError(
        f"the data set {printable(f'{repository}/{folder}'.strip('/'))} of the Hub has no parquet files; download its "
        "images and give their folder"
    )


def _downloaded(repository: str, revision: str, pattern: str, cached: bool) -> Path | None:
    """The snapshot of a revision with the files of that pattern, out of the cache where the Hub does not answer.

    With `cached` the Hub is not asked at all.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with quiet_loggers("huggingface_hub", level=logging.ERROR):  # it warns of every retry
            return Path(
                snapshot_download(
                    repository,
                    repo_type="dataset",
                    revision=revision,
                    allow_patterns=[pattern],
                    local_files_only=cached,
                )
            )
    except HFValidationError:
        raise InputError(
            f"{printable(repository)} is no data set of the Hub; write hf:org/name, as in hf:uoft-cs/cifar10"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"the Hub has no data set {printable(repository)} that you may read; check the name, or log in with "
            "`hf auth login`"
        ) from None
    except RevisionNotFoundError:
        return None
    except Exception as error:  # what a connection can throw is as long a list as the library below has releases
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise StorageError(
                f"{printable(repository)} could not be stored: {error.strerror}; make room, or set HF_HOME to a folder "
                "on another disk"
            ) from None
        raise InputError(
            f"{printable(repository)} could not be downloaded ({type(error.__cause__ or error).__name__}: is this "
            "machine offline?); try again, give a folder or parquet file that is here, or use digits, which needs no "
            "download"
        ) from None
