"""The machine that figures are taken on."""

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """The processor as its maker names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def processes_waiting() -> float:
    """Processes that wanted a core in the last minute: above 0, other work takes part in every figure."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
