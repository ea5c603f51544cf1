"""Memory: what a build will take, and what this machine has left."""

import re
from pathlib import Path

# The library itself, and copies of the weights while it parses, optimises and writes (measured,
# docs/measurements/tensorrt-rtx-build.md).
_BASE = 400 << 20
_COPIES = 3.5


def build_estimate(weights: int) -> int:
    """Bytes that building an engine with `weights` bytes of weights takes at most."""
    return _BASE + int(_COPIES * weights)


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
