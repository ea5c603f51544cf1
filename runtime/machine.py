"""The machine: what its processor can do, and how busy it is."""

import os
import platform
from functools import cache
from pathlib import Path

# As Linux names them. AVX-VNNI is the same instruction in processors without AVX-512.
_VNNI = {"avx512_vnni", "avx_vnni"}
_BF16 = {"avx512_bf16", "amx_bf16"}


def processor_name() -> str:
    """The processor as its maker names it."""
    return _processor_field("model name") or platform.processor() or platform.machine()


@cache
def has_vnni() -> bool:
    """Whether the processor multiplies unsigned by signed 8-bit integers without saturating; False where not known."""
    return not _VNNI.isdisjoint(_processor_field("flags").split())


@cache
def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 numbers; False where not known."""
    return not _BF16.isdisjoint(_processor_field("flags").split())


def fingerprint(gpu: str = "") -> str:
    """What decides how fast each backend is here: processor, cores, instructions, and the GPU's compute capability."""
    flags = {"avx2", "avx512f", *_VNNI, *_BF16} & set(_processor_field("flags").split())
    parts = [processor_name(), f"{os.cpu_count()} cores", " ".join(sorted(flags)), gpu]
    return ", ".join(part for part in parts if part)


def processes_waiting() -> float:
    """Processes that wanted a core in the last minute: above 0, other work takes part in every figure."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _processor_field(name: str) -> str:
    """What Linux says of the first processor; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0].strip() == name), "")
