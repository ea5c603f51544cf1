"""Memory that this machine has left, held against what the weights take before they are loaded."""

import re
import sys
from contextlib import suppress
from pathlib import Path

from .errors import RedipruneError

_MEMINFO, _MEMBERSHIP, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


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
    """Bytes that this process may still take, by the system and by every control group it is in; None if none says."""
    found = []
    with suppress(OSError):
        found += [int(kib) * 1024 for kib in re.findall(r"MemAvailable:\s+(\d+)", _MEMINFO.read_text())]
    with suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                place = _GROUPS / "memory" if controllers else _GROUPS
                for group in (place / path.lstrip("/"), *(place / path.lstrip("/")).parents):
                    if group.is_relative_to(place):
                        found += _left_in(group)
    return min(found, default=None)


def peak_memory() -> int:
    """The process's largest resident size so far, in bytes; 0 where the system does not tell."""
    with suppress(OSError, IndexError):  # Linux: getrusage counts what the parent had when it started this process too
        return int(re.findall(r"VmHWM:\s+(\d+)", _STATUS.read_text())[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _left_in(group: Path) -> list[int]:
    """What a control group of version 2 or 1 has left; file pages that can be dropped count as free."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, IndexError):  # not of this version, without a limit, or not told
            most, taken = (int((group / name).read_text()) for name in (limit, used))
            dropped = re.findall(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
            return [most - taken + int(dropped[0])]
    return []
