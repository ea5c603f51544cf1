"""Where a bundle is made: a folder beside its place, renamed when the bundle is whole.

A stage finished there is not redone by the next run. Whoever makes a bundle holds its lock (`lock.py`).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import RedipruneError
from .atomic_file import replacing
from .integrity import Bundle
from .manifest import MANIFEST, WEIGHTS, Manifest, StageSpec
from .siblings import old_of, partial_of
from .verified_files import stamp_of

_KEY = "key.json"


class Staging:
    """A bundle in the making, in `.<name>.partial`."""

    def __init__(self, folder: Path, key: dict[str, Any], force: bool = False):
        """Go on with what an earlier run finished for the same `key`; start anew for another one, or with `force`."""
        self.target = folder
        self.folder = partial_of(folder)
        if force or self._read(_KEY) != key:
            shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "onnx").mkdir(parents=True, exist_ok=True)
        (self.folder / _KEY).write_text(json.dumps(key), encoding="utf-8")

    def finished(self, stage: str) -> StageSpec | None:
        """What an earlier run made of a stage, if all its files are as they were then.

        The checkpoint's own weight files only have to be there: their hashes are taken anew by every run.
        """
        raw = self._read(f"{stage}.done")
        try:
            spec, stamps = StageSpec.model_validate(raw["spec"]), raw["stamps"]
            return spec if all(self._stamp(name) == stamps[name] for name in spec.files) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finish(self, stage: str, spec: StageSpec) -> None:
        """Note that a stage is done. Its files were just hashed, and are not touched any more."""
        done = {"spec": spec.model_dump(), "stamps": {name: self._stamp(name) for name in spec.files}}
        with replacing(self.folder / f"{stage}.done") as temporary:
            temporary.write_text(json.dumps(done), encoding="utf-8")

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest and put the bundle in its place.

        The one that was there is moved aside first, and removed last. Ended in between, the next run finds one of the two
        in its place, or both beside it (`recover`).
        """
        Bundle(self.folder, manifest).write_manifest()
        old = old_of(self.target)
        shutil.rmtree(old, ignore_errors=True)
        replaced = self.target.exists()
        if replaced:
            self.target.rename(old)
        try:
            self.folder.rename(self.target)
        except OSError:
            if replaced:
                old.rename(self.target)
            raise
        _tidy(self.target)

    def _stamp(self, name: str) -> list[int]:
        stat = (self.folder / name).stat()
        return [] if name.startswith(f"{WEIGHTS}/") else stamp_of(stat)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def recover(folder: Path) -> None:
    """Bring back what `publish` left when it was ended between its renames. The bundle's lock is held.

    Then nothing is in the bundle's place, and beside it are the new one, which is whole, and the old one.
    """
    if (folder / MANIFEST).is_file():
        _tidy(folder)
        return
    if not old_of(folder).is_dir() or (folder.exists() and any(folder.iterdir())):
        return
    for copy in (partial_of(folder), old_of(folder)):
        if _is_whole(copy):
            if folder.exists():
                folder.rmdir()
            copy.rename(folder)
            _tidy(folder)
            return


def _is_whole(folder: Path) -> bool:
    try:
        Bundle.open(folder, remember=False)
    except RedipruneError:
        return False
    return True


def _tidy(folder: Path) -> None:
    """Remove what is of no use once a bundle is in its place: notes of finished stages, and the one that it replaced."""
    for note in (*folder.glob("*.done"), folder / _KEY):
        note.unlink(missing_ok=True)
    shutil.rmtree(old_of(folder), ignore_errors=True)


def check_target(folder: str | Path) -> Path:
    """The place of a bundle to be made, every link resolved.

    Raises:
        RedipruneError: it is the current folder, no place for a folder, or holds something that is not a bundle.
    """
    try:
        path = Path(os.path.realpath(folder))
        if path == Path.cwd():
            raise RedipruneError("a bundle cannot take the place of the current folder; give -o a folder in it")
        if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise RedipruneError(f"'{path}' exists and is not a bundle; choose another folder or remove it")
    except (OSError, ValueError) as error:  # no permission to look, a name that is too long or has a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RedipruneError(
            f"{str(folder)!r} cannot be the place of a bundle ({reason}); choose another folder"
        ) from error
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
