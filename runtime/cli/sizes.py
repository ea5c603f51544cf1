"""Sizes of memory as a user writes them."""

from ..errors import RedipruneError

_UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "B": 1}


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as 512MB or 4GB.

    Raises:
        RedipruneError: it is no size; the message names the option.
    """
    upper = text.strip().upper().replace("IB", "B")
    unit = next((unit for unit in _UNITS if upper.endswith(unit)), "")
    try:
        size = int(float(upper.removesuffix(unit)) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise RedipruneError(f"{option} takes a size such as 512MB or 4GB, not '{text}'")
    return size
