"""Downloads from the Hugging Face Hub, announced on the console and verified by checksum."""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from skipway.data.sources.hub import NO_ROOM
from skipway.errors import InputError, StorageError, printable
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = ["cache_folder", "download", "download_to", "report_downloads"]

_report: ContextVar[Callable[[str], None]] = ContextVar("report", default=lambda text: print(text, file=sys.stderr))


_cache: ContextVar[str | None] = ContextVar("cache", default=None)


@contextmanager
def download_to(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Use `folder` as the cache of the Hub in this context; None for the usual one."""
    token = _cache.set(None if folder is None else os.fspath(folder))
    try:
        yield
    finally:
        _cache.reset(token)


@contextmanager
def report_downloads(report: Callable[[str], None]) -> Iterator[None]:
    """Send the console line of each download in this context to `report` instead of standard error."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def cache_folder() -> str:
    """Return the cache folder of the Hub, which HF_HOME or `download_to` sets."""
    from huggingface_hub import constants

    return _cache.get() or str(constants.HF_HUB_CACHE)


def download(repository: str, file: str) -> Path:
    """Return the path of a Hub file in the local cache; download it if it is missing.

    Args:
        repository: Repository such as "timm/resnet50.a1_in1k", with "@" and a revision if not the newest is meant.
        file: File name in the repository.

    Raises:
        InputError: The repository or file does not exist, the Hub is unreachable, or the checksum differs.
        StorageError: The disk is full.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    where = printable(repository)
    repository, _, revision = repository.partition("@")
    options = {"revision": revision or None, "cache_dir": _cache.get()}
    try:
        with quiet_loggers("huggingface_hub", level=logging.ERROR):  # hides a warning for every retry
            try:
                return Path(hf_hub_download(repository, file, local_files_only=True, **options))  # a tag never changes
            except LocalEntryNotFoundError:
                # Fails immediately if the Hub is unreachable.
                metadata = get_hf_file_metadata(hf_hub_url(repository, file, revision=options["revision"]))
                _report.get()(
                    f"downloading {where}/{file}, {_megabytes(metadata.size)}, to {printable(cache_folder())}"
                )
                path = Path(hf_hub_download(repository, file, **options))
    except HFValidationError:
        raise InputError(
            f"pretrained: expected a file, a run folder or a Hub repository, got {where!r}. Pass a repository as "
            "timm/NAME.TAG."
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"pretrained: expected a readable Hub repository, a file or a run folder, got {where}. Check the tag, or "
            "log in with `hf auth login`."
        ) from None
    except RemoteEntryNotFoundError:
        raise InputError(f"{where}: expected the file {file}, got none. Pass a repository of a timm model.") from None
    except Exception as error:  # the HTTP library raises many types
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise StorageError(
                f"cannot store the weights of {where}: {error.strerror}. Free disk space, or set HF_HOME elsewhere."
            ) from None
        raise InputError(
            f"cannot download {where}: {type(error.__cause__ or error).__name__}. Check the connection and try "
            f"again, or run `skipway weights get {_model_of(repository)}` on another machine and pass its file as "
            "--pretrained here."
        ) from None
    _verify_checksum(path, f"{where}/{file}", metadata.etag or "")
    return path


def _verify_checksum(path: Path, where: str, etag: str) -> None:
    """Delete a file and raise an error if its SHA-256 differs from the Hub's; small files have no SHA-256."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise InputError(
            f"{where}: expected the SHA-256 {etag[:12]}..., got {digest[:12]}.... The file was deleted. Download it "
            "again."
        )


def _megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:,.1f} MB"


def _model_of(repository: str) -> str:
    """Return the arguments of `skipway weights get` for a timm repository."""
    return printable(repository.rpartition("/")[2].replace(".", " --tag ", 1))
