"""Find librediprune_plugin.so and register `MaxMinSelect` with TensorRT."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

LIBRARY = "librediprune_plugin.so"
VARIABLE = "REDIPRUNE_PLUGIN"
NAME, VERSION, NAMESPACE = "MaxMinSelect", "1", "rediprune"  # of plugin.h

_BUILD = f"Build it with `make -C {Path(__file__).parent} clean plugin TENSORRT_ROOT=/path/to/TensorRT`"


class PluginMissing(RuntimeError):
    """There is no plugin library, or it cannot be loaded. The message says where it was sought and how to build it."""


def find_plugin(path: str | os.PathLike[str] | None = None) -> Path:
    """Find the plugin library: `path` if given, else `$REDIPRUNE_PLUGIN`, else beside this module.

    Args:
        path: the library, or the folder that holds it. A path that is given but holds none is an error: the other
            places are not tried.

    Returns:
        The library's absolute path.

    Raises:
        PluginMissing: there is no library; the message names every place that was tried.
    """
    named = path if path is not None else os.environ.get(VARIABLE) or None
    place = Path(__file__).parent if named is None else Path(named).expanduser()
    library = place / LIBRARY if place.is_dir() else place
    if library.is_file():
        return library.resolve()
    if path is not None:
        sought = f"{library} (as given)"
    elif named is not None:
        sought = f"{library} (from ${VARIABLE})"
    else:
        sought = f"${VARIABLE} (not set), {library} (beside this package)"
    raise PluginMissing(f"the TensorRT plugin was not found; looked for {sought}. {_BUILD}, or set {VARIABLE} to it")


def load_plugin(path: str | os.PathLike[str] | None = None, tensorrt: Any = None) -> Path:
    """Load the plugin library into the process and register its creator; loading it again does nothing.

    Call it before parsing a model or deserialising an engine. Where the plugin library sees TensorRT's, it registers
    itself; where TensorRT was loaded privately, TensorRT's plugin registry loads it.

    Args:
        path: see `find_plugin`.
        tensorrt: the `tensorrt` module; imported if not given.

    Returns:
        The library's path.

    Raises:
        PluginMissing: not found, not loadable, or refused by TensorRT.
        ImportError: there is no TensorRT to register with.
    """
    if tensorrt is None:
        import tensorrt  # pyright: ignore[reportMissingImports]
    return _load(find_plugin(path), tensorrt)


@cache
def _load(library: Path, tensorrt: Any) -> Path:
    try:
        handle = ctypes.CDLL(str(library))
        registered = bool(handle.rediprune_is_registered())
    except (OSError, AttributeError) as error:
        raise PluginMissing(f"{library} cannot be loaded ({error}). {_BUILD} on this machine") from error
    if not registered and not tensorrt.get_plugin_registry().load_library(str(library)):
        raise PluginMissing(
            f"TensorRT {tensorrt.__version__} refused {library}: "
            f"load only one library with {NAMESPACE}::{NAME}, built for this TensorRT"
        )
    return library
