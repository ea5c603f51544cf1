"""Files of media, opened only where they are files: no device, no pipe, nothing endless."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import RedipruneError

_KINDS = (
    (stat.S_ISDIR, "a folder; give a file in it"),
    (stat.S_ISFIFO, "a pipe; write what comes out of it to a file first"),
    (stat.S_ISSOCK, "a socket; give a file"),
    (stat.S_ISCHR, "a device; give a file"),
    (stat.S_ISBLK, "a device; give a file"),
)


def open_media(path: str | Path, limit: int) -> BinaryIO:
    """Open a regular file to read; its type and size are looked at first.

    Args:
        path: of the file.
        limit: bytes that it may have.

    Raises:
        RedipruneError: there is none, it cannot be read, is no regular file or is too large.
    """
    try:
        _check(os.stat(path), path, limit)  # before it is opened: opening a pipe waits, a device may act on it
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    except FileNotFoundError:
        raise RedipruneError(f"there is no file {path}") from None
    except OSError as error:
        raise RedipruneError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise RedipruneError(f"{str(path)!r} is no path of a file") from None
    try:
        _check(os.fstat(file.fileno()), path, limit)  # it may be another file by now
    except RedipruneError:
        file.close()
        raise
    return file


def read_media(path: str | Path, limit: int) -> bytes:
    """All bytes of a regular file, at most `limit`. Raises what `open_media` raises."""
    with open_media(path, limit) as file:
        try:
            data = file.read(limit + 1)  # files of /proc say that they are empty
        except OSError as error:
            raise RedipruneError(f"{path} cannot be read: {error.strerror}") from None
    check_size(str(path), len(data), limit)
    return data


def check_size(name: str, size: int, limit: int) -> None:
    """Refuse what has more bytes than it may."""
    if size > limit:
        raise RedipruneError(
            f"{name} has {size / 1e6:,.0f} MB, and at most {limit / 1e6:,.0f} MB are read: make it smaller, or raise the "
            "limit (rediprune run --help)"
        )


def _check(status: os.stat_result, path: str | Path, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((text for is_kind, text in _KINDS if is_kind(status.st_mode)), "something else; give a file")
        raise RedipruneError(f"{path} cannot be read: there is no file there, but {what}")
    check_size(str(path), status.st_size, limit)
