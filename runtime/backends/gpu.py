"""The GPU, asked of NVIDIA's driver itself: no package is needed to say in one line why none can be used."""

import ctypes
import sys

from ..errors import RedipruneError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def compute_capability(backend: str, instead: str = "--backend ort answers on the CPU") -> str:
    """The first GPU's compute capability, e.g. "sm_89".

    Raises:
        RedipruneError: there is no driver or no GPU; says that `backend` needs one, and what works `instead`.
    """
    without = f"without one, {instead}"
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise RedipruneError(
            f"backend '{backend}' needs an NVIDIA GPU and no driver is installed here; {without}"
        ) from error
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value < 1:
        reason = f"the driver gives error {status}, {_text(driver, status)}" if status else "the driver sees none"
        raise RedipruneError(f"backend '{backend}' needs an NVIDIA GPU and {reason} (see nvidia-smi); {without}")
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
        numbers.append(value.value)
    return f"sm_{numbers[0]}{numbers[1]}"


def _text(driver: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    return (text.value or b"unknown").decode()
