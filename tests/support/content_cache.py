"""What takes long to make is made once: kept from one run to the next, shared by the workers of a run.

An entry is found by a hash of all that it depends on (sources, library versions, inputs), so it cannot be stale. It
lies in pytest's cache folder; `make clean` or `pytest --cache-clear` drops it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
_SOURCES = (".py", ".cu", ".cuh", ".h", ".cpp")
_UNUSED_FOR = 14 * 86400  # seconds after which an entry that no run asked for is dropped


@cache
def sources_digest(*places: str) -> str:
    """Hash of the sources below some folders or files of the repository, and of the libraries installed.

    Args:
        places: paths relative to the repository's root.
    """
    files: set[Path] = set()
    for place in places:
        path = ROOT / place
        files |= {path} if path.is_file() else {file for file in path.rglob("*") if file.suffix in _SOURCES}
    libraries = {(found.name, found.version) for found in distributions()}
    return digest([(str(file.relative_to(ROOT)), files_digest([file])) for file in sorted(files)], sorted(libraries))


def files_digest(files: Iterable[Path]) -> str:
    """Hash of the names and contents of files."""
    state = hashlib.sha256()
    for file in files:
        state.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        state.update(file.read_bytes())
    return state.hexdigest()


def digest(*parts: object) -> str:
    """Hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ContentCache:
    """Folders found by what they were made from.

    Args:
        root: where they lie.
    """

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str, key: str, make: Callable[[Path], object]) -> Path:
        """The folder of an entry, made if it is not there. Who asks must not change it.

        Args:
            kind: a word that says what the entry is, for whoever looks into the cache.
            key: `digest` of all that the entry depends on.
            make: fills the path that it is given, an empty folder's; called by one process only.
        """
        place = self.root / f"{kind}-{key[:20]}"
        done = place.with_name(f"{place.name}.done")
        if not done.exists():
            with FileLock(place.with_name(f"{place.name}.lock")):
                if not done.exists():
                    shutil.rmtree(place, ignore_errors=True)  # of a run that was broken off
                    place.mkdir()
                    make(place)
                    done.touch()
        done.touch()
        return place

    def drop_unused(self) -> None:
        """Drop what no run has asked for in two weeks."""
        for done in self.root.glob("*.done"):
            if time.time() - done.stat().st_mtime > _UNUSED_FOR:
                done.unlink(missing_ok=True)
                shutil.rmtree(done.with_suffix(""), ignore_errors=True)
                done.with_suffix(".lock").unlink(missing_ok=True)
