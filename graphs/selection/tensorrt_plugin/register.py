"""Finds librediprune_plugin.so and registers `MaxMinSelect` with TensorRT."""

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
    """No plugin library, or not a loadable one. The message says where it was sought and how to build it."""


def find_plugin(path: str | os.PathLike[str] | None = None) -> Path:
    """The plugin library: `path` if given, else `$REDIPRUNE_PLUGIN`, else beside this module.

    A folder stands for the library in it. A place that is named but empty is an error, not passed over.

    Raises:
        PluginMissing: no library; every place looked at is named.
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

    To be called before parsing or deserialising. The library registers itself where TensorRT's library is in
    its reach; where TensorRT was loaded privately, its plugin registry loads the library.

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
