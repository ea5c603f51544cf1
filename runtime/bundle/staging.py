"""Where a bundle is made: a folder beside its place, renamed when the bundle is whole.

A stage finished there is not redone by the next run. One process at a time works on a bundle.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RedipruneError
from .integrity import Bundle
from .manifest import MANIFEST, Manifest, StageSpec


class Staging:
    """A bundle in the making, in `.<name>.partial`."""

    def __init__(self, folder: Path, key: dict[str, Any], force: bool = False):
        """Go on with what an earlier run finished for the same `key`; start anew for another one, or with `force`."""
        self.target = folder
        self.folder = folder.parent / f".{folder.name}.partial"
        if force or self._read("key.json") != key:
            shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "onnx").mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(json.dumps(key), encoding="utf-8")

    def finished(self, stage: str) -> StageSpec | None:
        """What an earlier run made of a stage, if all its files are still there."""
        raw = self._read(f"{stage}.done")
        if raw is None:
            return None
        spec = StageSpec.model_validate(raw)
        return spec if all((self.folder / name).is_file() for name in spec.files) else None

    def finish(self, stage: str, spec: StageSpec) -> None:
        (self.folder / f"{stage}.done").write_text(spec.model_dump_json(), encoding="utf-8")

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest and put the bundle in its place."""
        Bundle(self.folder, manifest).write_manifest()
        for leftover in (*self.folder.glob("*.done"), self.folder / "key.json"):
            leftover.unlink()
        old = self.target.parent / f".{self.target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        shutil.rmtree(old, ignore_errors=True)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def check_target(folder: str | Path) -> Path:
    """The place of a bundle to be made, every link resolved.

    Raises:
        RedipruneError: it is the current folder, or holds something that is not a bundle.
    """
    path = Path(os.path.realpath(folder))
    if path == Path.cwd():
        raise RedipruneError("a bundle cannot take the place of the current folder; give -o a folder in it")
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise RedipruneError(f"'{path}' exists and is not a bundle; choose another folder or remove it")
    return path


def check_room(folder: Path, needed: int) -> None:
    """Refuse before the work what would not fit on the disk of `folder`; `needed` in bytes."""
    free = shutil.disk_usage(folder).free
    needed += 64 << 20
    if free < needed:
        raise RedipruneError(
            f"the disk of '{folder.parent}' has {free / 1e9:.1f} GB free and the bundle needs {needed / 1e9:.1f} GB; "
            "free some space or choose another folder"
        )


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """While a bundle is made: no other process makes the same one, and a full or closed disk is told as such.

    Raises:
        RedipruneError: another process is at it, the disk is full or cannot be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.parent / f".{folder.name}.lock"
        with open(lock, "w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RedipruneError(
                    f"another process is making '{folder}'; wait for it, or choose another folder"
                ) from error
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RedipruneError(
                f"the disk of '{folder.parent}' is full; free some space or choose another folder, then run the same "
                "command: finished stages are kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM):
            raise RedipruneError(
                f"'{folder.parent}' cannot be written to ({error.strerror}); choose another folder"
            ) from error
        raise
