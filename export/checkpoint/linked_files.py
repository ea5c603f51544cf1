"""The checkpoint's weight files as a bundle has them: hashed beside other work, and hard-linked instead of copied.

Which files count is for `weight_files` to say.

A hard link is the file itself under a second name: it takes no room, stays when the checkpoint is removed, and is an
ordinary file to whoever copies the bundle. ONNX Runtime refuses symbolic links that leave the bundle.
"""

import errno
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...runtime.bundle import file_sha256
from ...runtime.errors import RedipruneError

# Another file system, one without links, a file of somebody else's (Linux protects those), too many links.
_UNLINKABLE = (
    errno.EXDEV,
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EINVAL,
)  # the last: Windows


class Hashing:
    """sha256 of files, taken in a thread: it costs about a second per GB and waits for no interpreter lock."""

    def __init__(self, files: Iterable[Path]):
        self.files = list(files)
        self.stamps = {file.name: _stamp(file) for file in self.files}
        self._pool = ThreadPoolExecutor(1)
        self._hashes = {file.name: self._pool.submit(_sha256, file) for file in self.files}

    def __enter__(self) -> "Hashing":
        return self

    def __exit__(self, *raised: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def of(self, file: Path) -> str:
        """sha256 of one file, when it is done.

        Raises:
            RedipruneError: it cannot be read.
        """
        return self._hashes[file.name].result()

    def result(self) -> dict[str, str]:
        """Name → sha256, when all are done; raises as `of`."""
        return {name: future.result() for name, future in self._hashes.items()}

    def check_unchanged(self) -> None:
        """Raises `RedipruneError` where a file has changed since its hash was begun."""
        for file in self.files:
            if not file.is_file() or _stamp(file) != self.stamps[file.name]:
                raise RedipruneError(f"weight file '{file}' changed while it was exported; run the same command again")


def can_link(files: Iterable[Path], folder: Path) -> bool:
    """Whether a bundle at `folder` can have hard links to the files; tried, since no rule covers every file system."""
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".link-", dir=place) as scratch:
            link(files, Path(scratch))
    except OSError as error:
        return error.errno not in _UNLINKABLE  # anything else is no matter of links, and told when work begins
    return True


def link(files: Iterable[Path], place: Path) -> None:
    """Hard-link files into a folder. In a hub cache they are symbolic links: what these lead to is linked."""
    for file in files:
        target = place / file.name
        if not target.exists():
            place.mkdir(parents=True, exist_ok=True)
            os.link(os.path.realpath(file), target)


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise RedipruneError(
            f"weight file '{file}' cannot be read ({error.strerror}); check who may read it, or download it again"
        ) from error


def _stamp(file: Path) -> list[int]:
    """What changes with a file's content; not its time of change, which a hard link to it changes too."""
    stat = file.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]
