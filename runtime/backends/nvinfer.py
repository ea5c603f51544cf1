"""The two packages of NVIDIA's nvinfer: TensorRT and TensorRT-RTX. They share one Python API."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import RedipruneError


@dataclass(frozen=True)
class Library:
    """One of the packages.

    Attributes:
        module: what is imported. title: what it is called.
        plugins: whether it takes plugins.
        own_graphs: whether it makes CUDA graphs itself.
        targets: the compute capabilities it runs on and builds for; none where it builds for the GPU present.
    """

    module: str
    title: str
    plugins: bool
    own_graphs: bool
    targets: tuple[str, ...] = ()


# TensorRT-RTX's targets: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
LIBRARIES = {
    "tensorrt": Library("tensorrt", "TensorRT", plugins=True, own_graphs=False),
    "tensorrt-rtx": Library("tensorrt_rtx", "TensorRT-RTX", plugins=False, own_graphs=True, targets=RTX_TARGETS),
}


def load_library(backend: str) -> Any:
    """Import a backend's module.

    Raises:
        RedipruneError: it is not installed, or does not load.
    """
    library = LIBRARIES[backend]
    try:
        return import_module(library.module)
    except ModuleNotFoundError as error:
        raise RedipruneError(
            f"backend '{backend}' needs {library.title}; install it with: pip install 'rediprune[{backend}]', "
            "or use --backend ort"
        ) from error
    except Exception as error:  # the packages raise what comes: OSError, FileNotFoundError, RuntimeError, …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RedipruneError(
            f"{library.title} is installed and does not load ({reason}); install it again with: "
            f"pip install --force-reinstall 'rediprune[{backend}]', or use --backend ort"
        ) from error


def make_log(module: Any, wanted: Callable[[str], bool] = lambda message: False) -> Any:
    """A logger that prints nothing: `reason` is its first error in one line, `kept` the other messages wanted."""

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.kept: list[str] = []

        @property
        def reason(self) -> str:
            return one_line(self.errors[0]) if self.errors else "no reason given"

        def log(self, severity: Any, msg: str) -> None:
            if severity in (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR):
                self.errors.append(msg)
            elif wanted(msg):
                self.kept.append(msg)

    return Log()


def one_line(text: str) -> str:
    return " ".join(text.split())[:600]


def find_plugin(backend: str) -> str | None:
    """The library of the selection plugin, where the backend takes plugins and one was built, or None.

    Raises:
        RedipruneError: $REDIPRUNE_PLUGIN names a place without one.
    """
    if not LIBRARIES[backend].plugins:
        return None
    from ...graphs.selection.tensorrt_plugin.register import VARIABLE, PluginMissing, find_plugin

    try:
        return str(find_plugin())
    except PluginMissing as error:
        if os.environ.get(VARIABLE):
            raise RedipruneError(one_line(str(error))) from error
        return None


def load_plugin(module: Any, library: str) -> None:
    """Register the selection plugin with the nvinfer module, before anything is parsed or deserialised.

    Raises:
        RedipruneError: it does not load here, or is of another version.
    """
    from ...graphs.selection.tensorrt_plugin.register import PluginMissing, load_plugin

    try:
        load_plugin(library, module)
    except PluginMissing as error:
        raise RedipruneError(one_line(str(error))) from error
