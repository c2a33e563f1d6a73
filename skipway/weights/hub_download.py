"""Downloads from the Hugging Face Hub: said before they begin, checked after, and errors that say what to do."""

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from skipway.data.sources.hub import NO_ROOM
from skipway.errors import InputError, StorageError, printable
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = ["cache_folder", "download", "report_downloads"]

_report: ContextVar[Callable[[str], None]] = ContextVar("report", default=lambda text: print(text, file=sys.stderr))


@contextmanager
def report_downloads(report: Callable[[str], None]) -> Iterator[None]:
    """Pass the line about each download inside the context to `report`; by default it goes to standard error."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def cache_folder() -> str:
    """Return the folder that the Hub's files are kept in, which HF_HOME sets."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def download(repository: str, file: str) -> Path:
    """Return the path of a file of the Hub in its cache; what is not there yet is downloaded after saying so.

    Raises:
        InputError: there is no such repository or file, the Hub is not reached, or the checksum differs.
        StorageError: the disk is full.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    where = printable(repository)
    try:
        with quiet_loggers("huggingface_hub", level=logging.ERROR):  # it warns of every retry
            try:
                return Path(hf_hub_download(repository, file, local_files_only=True))  # a tag's weights stay the same
            except LocalEntryNotFoundError:
                # Fails at once if the Hub is not reached.
                metadata = get_hf_file_metadata(hf_hub_url(repository, file))
                _report.get()(
                    f"downloading {where}/{file}, {_megabytes(metadata.size)}, to {printable(cache_folder())}"
                )
                path = Path(hf_hub_download(repository, file))
    except HFValidationError:
        raise InputError(
            f"pretrained={where!r} is neither a file or run that is here nor a repository of the Hub; write "
            "timm/NAME.TAG"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"the Hub has no repository {where} that you may read, nor is it a file or run here; check the tag, or log "
            "in with `hf auth login`"
        ) from None
    except RemoteEntryNotFoundError:
        raise InputError(f"{where} has no {file}; give a repository of timm's networks") from None
    except Exception as error:  # what a connection can throw is as long a list as the library below has releases
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise StorageError(
                f"{where} could not be stored: {error.strerror}; make room, or set HF_HOME to a folder on another disk"
            ) from None
        raise InputError(
            f"{where} could not be downloaded ({type(error.__cause__ or error).__name__}: is this machine offline?); "
            f"try again, or run `skipway weights get {_model_of(repository)}` on a machine that is online and give the "
            "file that it writes as --pretrained here"
        ) from None
    _verify_checksum(path, f"{where}/{file}", metadata.etag or "")
    return path


def _verify_checksum(path: Path, where: str, etag: str) -> None:
    """Refuse and remove a file that is not the one whose SHA-256 the Hub gives as its mark; small files have none."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise InputError(
            f"{where} has the checksum {digest[:12]}... where the Hub says {etag[:12]}...; it was removed: download it "
            "again"
        )


def _megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:,.1f} MB"


def _model_of(repository: str) -> str:
    """Return the model and tag of one of timm's repositories as `skipway weights get` takes them."""
    return printable(repository.rpartition("/")[2].replace(".", " --tag ", 1))
