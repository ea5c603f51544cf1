"""A file that is there whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which takes the place of `path` when all went well.

    The place has a name of its own each time, so that two processes that write the same file do not write into each
    other's: the later one stays.

    Args:
        path: the file to replace or to make; its folder exists.

    Yields:
        The temporary file's path. After an error it is removed, and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
