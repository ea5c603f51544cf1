"""Documented modules that moved keep their old names: importing one gives the new module and a DeprecationWarning.

`python -m OLD` runs the new module too. The table holds the names that the README and the pages under docs/ once
printed, and those that users of the library imported most likely; CHANGELOG.md lists every move.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

MOVED = {
    "rediprune.calibration.dataset": "rediprune.calibration.tasks.media_folder",
    "rediprune.export.bench_export": "rediprune.export.bench.bench_export",
    "rediprune.export.bundle": "rediprune.export.exporter",
    "rediprune.export.gpu_measurements": "rediprune.export.bench.gpu.gpu_measurements",
    "rediprune.graphs.keep": "rediprune.graphs.selection.counts",
    "rediprune.graphs.maxmin": "rediprune.graphs.selection.onnx_graph",
    "rediprune.graphs.plugin": "rediprune.graphs.selection.cuda",
    "rediprune.graphs.plugin.gpu_check": "rediprune.export.bench.gpu.gpu_check",
    "rediprune.graphs.plugin.gpu_pipeline": "rediprune.export.bench.gpu.gpu_pipeline",
    "rediprune.graphs.plugin.launcher": "rediprune.graphs.selection.cuda.launcher",
    "rediprune.graphs.plugin.register": "rediprune.graphs.selection.tensorrt_plugin.register",
    "rediprune.graphs.plugin.tensors": "rediprune.graphs.selection.cuda.tensors",
    "rediprune.runtime.images": "rediprune.runtime.media.images",
    "rediprune.runtime.media.preprocess": "rediprune.runtime.media.processor",
    "rediprune.runtime.preprocess": "rediprune.runtime.media.processor",
    "rediprune.runtime.session": "rediprune.runtime.backends.session",
    "rediprune.runtime.show": "rediprune.runtime.media.visualize",
    "rediprune.runtime.video": "rediprune.runtime.media.video",
}


class MovedModuleFinder(MetaPathFinder):
    """Finds a moved module under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new_name = MOVED.get(fullname)
        if new_name is None:
            return None
        return ModuleSpec(fullname, _MovedModuleLoader(new_name), is_package=fullname == "rediprune.graphs.plugin")


class _MovedModuleLoader(Loader):
    """Loads the module at its new place, so that both names are one object: no class exists twice."""

    def __init__(self, new_name: str):
        self.new_name = new_name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _warn(spec.name, self.new_name, depth=2)
        module = import_module(self.new_name)
        self.real_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.real_spec  # the import system has put the old name's in its place

    def get_code(self, fullname: str) -> CodeType:
        """What `python -m OLD` runs: the new module as `__main__`, with its own name and relative imports."""
        _warn(fullname, self.new_name, depth=2)
        source = f"import runpy; runpy.run_module({self.new_name!r}, run_name='__main__', alter_sys=True)"
        return compile(source, f"<{fullname}, moved>", "exec")


def _warn(old_name: str, new_name: str, depth: int) -> None:
    message = f"{old_name} has moved: import {new_name} instead"
    warnings.warn(message, DeprecationWarning, stacklevel=depth + 1)


def install() -> None:
    """Let the import system know the old names. It asks the first finder first, before the folders of a package."""
    if not any(isinstance(finder, MovedModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModuleFinder())
