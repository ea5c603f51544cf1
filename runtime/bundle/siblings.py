"""What lies beside a bundle while it is made or changed: never in it, where files are listed and hashed."""

from pathlib import Path


def partial_of(folder: Path) -> Path:
    """Where a bundle is made."""
    return folder.parent / f".{folder.name}.partial"


def old_of(folder: Path) -> Path:
    """Where the bundle that is being replaced waits until the new one is in its place."""
    return folder.parent / f".{folder.name}.old"


def lock_of(folder: Path) -> Path:
    """The file by whose lock one process at a time makes or changes a bundle. It is empty, and stays."""
    return folder.parent / f".{folder.name}.lock"
