"""What was found right before, so that gigabytes are not hashed at every start.

The record lies in the user's cache, not in the bundle: it is this machine's own, and no copy of a bundle brings one
along. A file is known by device, inode, size and both times, so that one that was copied, replaced or written to is hashed
again, also where its size and the time of its last change were put back.
"""

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from .atomic_file import replacing

Stamp = list[int]


def cache_folder() -> Path:
    """Where things are kept that can be made again: $REDIPRUNE_CACHE, or the system's place for a user's caches."""
    told = os.environ.get("REDIPRUNE_CACHE")
    return Path(told) if told else user_cache_path("rediprune", appauthor=False)


def stamp_of(stat: os.stat_result) -> Stamp:
    """What changes with a file's content: device, inode, size, times of the last write and of the last change."""
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


class VerifiedFiles:
    """The files of one bundle folder whose hash was found right. Safe for threads; processes lose at most a note."""

    def __init__(self, folder: Path, trusted: bool = True):
        """Read the record.

        Args:
            folder: the bundle.
            trusted: take over what was found before; False begins with nothing known.
        """
        self._folder = os.path.realpath(folder)
        self._path = cache_folder() / "verified" / f"{hashlib.sha256(self._folder.encode()).hexdigest()[:32]}.json"
        self._lock = threading.Lock()
        self._known = self._read() if trusted else {}
        self._changed: dict[str, list[Any] | None] = {}  # since the record was written; None is to be forgotten

    def knows(self, name: str, stat: os.stat_result, sha256: str) -> bool:
        """Whether a file of the bundle is one that was found to have this hash."""
        return self._known.get(name) == [*stamp_of(stat), sha256]

    def note(self, name: str, stat: os.stat_result, sha256: str) -> None:
        """Note that a file has this hash. `stat` was taken before it was read."""
        self._set(name, [*stamp_of(stat), sha256])

    def external_data(self, sha256: str) -> list[str] | None:
        """The places of external data in the graph with this hash, if they are known."""
        return self._known.get(f"sha256:{sha256}")  # no file's name: it has a colon

    def note_external_data(self, sha256: str, locations: list[str]) -> None:
        self._set(f"sha256:{sha256}", locations)

    def forget(self, name: str) -> None:
        """Take back what was noted of a file."""
        self._set(name, None)

    def save(self) -> None:
        """Write down what changed, beside what other processes noted. Where that is not possible, files are hashed anew."""
        with self._lock:
            if not self._changed:
                return
            known = self._read() | self._changed
            known = {name: entry for name, entry in known.items() if entry is not None}
            with suppress(OSError):
                if not self._path.exists():
                    self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    self._remove_orphans()
                with replacing(self._path) as temporary:
                    temporary.write_text(json.dumps({"folder": self._folder, "files": known}), encoding="utf-8")
            self._changed = {}

    def _remove_orphans(self) -> None:
        """Remove the records of bundles that are gone."""
        for path in self._path.parent.glob("*.json"):
            with suppress(OSError, ValueError, TypeError, KeyError):
                if not os.path.isdir(json.loads(path.read_text(encoding="utf-8"))["folder"]):
                    path.unlink()

    def _set(self, name: str, entry: list[Any] | None) -> None:
        with self._lock:
            self._changed[name] = entry
            if entry is None:
                self._known.pop(name, None)
            else:
                self._known[name] = entry

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads(self._path.read_text(encoding="utf-8")).get("files")
            return found if isinstance(found, dict) else {}
        return {}
