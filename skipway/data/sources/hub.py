"""Datasets of the Hugging Face Hub: downloaded as parquet files and cached."""

import errno
import logging
from pathlib import Path

from skipway.errors import InputError, StorageError, printable
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = ["HUB_NAMES", "NO_ROOM", "hub_folder"]

_CONVERTED = "refs/convert/parquet"  # the Hub converts repositories of scripts or images to parquet

# name -> (repository, revision, folder in the repository)
HUB_NAMES = {
    "cifar10": ("uoft-cs/cifar10", "main", "plain_text"),
    "mnist": ("ylecun/mnist", "main", "mnist"),
    "imagenette": ("frgfm/imagenette", _CONVERTED, "160px"),
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def hub_folder(name: str) -> Path:
    """Download the parquet files of a dataset, unless they are cached.

    Args:
        name: a key of `HUB_NAMES`, "hf:org/name", or "hf:org/name/folder".

    Returns:
        The local folder of the files.

    Raises:
        InputError: the dataset does not exist, has no parquet files, or cannot be downloaded.
        StorageError: the files cannot be written.
    """
    if name in HUB_NAMES:
        repository, revision, folder = HUB_NAMES[name]
        revisions: tuple[str, ...] = (revision,)
    else:
        organization, _, rest = name.removeprefix("hf:").partition("/")
        short, _, folder = rest.partition("/")
        repository, revisions = f"{organization}/{short}", ("main", _CONVERTED)
    refused = None
    for revision in revisions:
        pattern = f"{folder}/*.parquet" if folder else "*.parquet"
        try:  # offline, a revision without such files is not cached, but the next one may be
            snapshot = _downloaded(repository, revision, pattern, cached=refused is not None)
        except InputError as error:
            refused = refused or error
            continue
        if snapshot and any((snapshot / folder).rglob("*.parquet")):
            return snapshot / folder
    raise refused or InputError(
        f"cannot use the Hub dataset {printable(f'{repository}/{folder}'.strip('/'))}: expected parquet files, found "
        "none. Download its images and pass their folder."
    )


def _downloaded(repository: str, revision: str, pattern: str, cached: bool) -> Path | None:
    """Download a revision's files that match `pattern`, or read them from the cache if the Hub is unreachable.

    With `cached`, only the cache is used. Returns None if the revision does not exist.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with quiet_loggers("huggingface_hub", level=logging.ERROR):  # it logs a warning for every retry
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
            f"cannot use hf:{printable(repository)}: expected hf:org/name. Write the name as in hf:uoft-cs/cifar10."
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"cannot access the Hub dataset {printable(repository)}: it does not exist or is private. Check the "
            "name, or log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        return None
    except Exception as error:  # the exceptions of a failed connection change between releases
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise StorageError(
                f"cannot store the dataset {printable(repository)}: {error.strerror}. Free disk space, or set HF_HOME "
                "to a writable folder on another disk."
            ) from None
        raise InputError(
            f"cannot download the dataset {printable(repository)}: {type(error.__cause__ or error).__name__}. Check "
            "the connection and try again, or pass a local folder or file, or digits, which is bundled."
        ) from None
