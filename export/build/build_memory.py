"""Memory that building an engine takes."""

# The library itself, and copies of the weights while it parses, optimises and writes (measured,
# docs/measurements/tensorrt-rtx-build.md).
_BASE = 400 << 20
_COPIES = 3.5


def build_estimate(weights: int) -> int:
    """Bytes that building an engine with `weights` bytes of weights takes at most."""
    return _BASE + int(_COPIES * weights)
