"""Memory that this machine has left, held against what the weights take before they are loaded."""

import re
from pathlib import Path

from .errors import RedipruneError


def check_memory(what: str, needed: int, advice: str) -> None:
    """Refuse before the work weights that cannot fit: they must lie in memory at least once.

    Args:
        what: will be loaded, and its precision.
        needed: bytes of its weights.
        advice: what helps beside more memory.

    Raises:
        RedipruneError: less memory is free.
    """
    free = available_memory()
    if free is not None and needed > free:
        raise RedipruneError(
            f"the weights of {what} take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; {advice}, "
            "close other programs or use a larger machine"
        )


def available_memory() -> int | None:
    """Bytes that this process may still take, by the system and by its control group; None if neither says."""
    found = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        found += [int(kib) * 1024 for kib in re.findall(r"MemAvailable:\s+(\d+)", meminfo)]
    except OSError:
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
