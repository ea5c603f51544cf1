"""One process at a time makes or changes a bundle, and what goes wrong with its disk is told in one line."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import RedipruneError
from .integrity import Bundle
from .manifest import MANIFEST
from .siblings import lock_of, old_of, partial_of
from .staging import recover

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Hold the place of a bundle that is made anew; its parent folders are made where they are missing.

    What an earlier run left when it was ended between two renames is brought back first.

    Args:
        folder: the bundle's place.

    Raises:
        RedipruneError: another process holds it, the disk is full or cannot be written to.
    """
    place = Path(os.path.realpath(folder))
    with _held(place, 0.0):
        recover(place)
        yield


@contextmanager
def changing(folder: str | Path, wait: float = 0.0) -> Iterator[Bundle]:
    """Hold a bundle to add to it, or to note something in its manifest.

    Args:
        folder: the bundle.
        wait: for another process that holds it, at most so many seconds.

    Yields:
        The bundle as it is on disk, opened once it is held, so that nothing another process wrote is overwritten.

    Raises:
        RedipruneError: it cannot be used, another process holds it, the disk is full or cannot be written to.
    """
    place = Path(os.path.realpath(folder))
    if not (place / MANIFEST).is_file() and not old_of(place).is_dir():
        Bundle.open(folder)  # says what is wrong, and leaves no lock behind
    with _held(place, wait):
        recover(place)
        yield Bundle.open(folder)


@contextmanager
def _held(folder: Path, wait: float) -> Iterator[None]:
    """Hold a bundle's place, links resolved: under two names it is still one place."""
    lock = FileLock(lock_of(folder), timeout=wait)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()  # a lock that cannot be made looks like one that is held
        lock.acquire()
    except Timeout as error:
        raise RedipruneError(
            f"another process is making or changing '{folder}'; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise RedipruneError(_cannot_write(folder, error)) from error
    try:
        yield
    except OSError as error:
        if (message := _explained(folder, error)) is not None:
            raise RedipruneError(message) from error
        raise
    finally:
        lock.release()  # the file stays: whoever waits for the lock has it open


def _cannot_write(folder: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"the disk of '{folder.parent}' is full; free some space or choose another folder, then run the same command: "
            "finished stages are kept"
        )
    return f"'{folder.parent}' cannot be written to ({error.strerror or error}); choose another folder"


def _explained(folder: Path, error: OSError) -> str | None:
    """One line about an error of the system while the place was held; None where there is nothing to say of it."""
    if error.errno in _FULL:
        return _cannot_write(folder, error)
    if error.errno not in _DENIED or not isinstance(error.filename, str | os.PathLike):
        return None
    path = Path(os.path.abspath(error.filename))
    if any(path.is_relative_to(place) for place in (folder, partial_of(folder), old_of(folder), lock_of(folder))):
        return _cannot_write(folder, error)
    return (
        f"no permission for '{path}' ({error.strerror}); check who may read it, and whether its disk can be written to"
    )
