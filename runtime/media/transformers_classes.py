"""Public classes of transformers by name: imported when the first is asked for, quietly, and in less time."""

import os
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# Without torch transformers says at every start that models are unavailable; the runtime needs none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def transformers_class(name: str) -> Any:
    """A public class of transformers, which prints while it is imported where docstrings are stripped (python -OO)."""
    with redirect_stdout(sys.stderr):  # stdout is for answers
        return getattr(_library(), name)


@cache
def _library() -> ModuleType:
    library = import_module("transformers")
    if "transformers.models" not in sys.modules:
        _import_models(Path(library.__path__[0]) / "models")
    return library


def _import_models(folder: Path) -> None:
    """Import transformers.models with what was found in its folder a moment before.

    transformers reads the sources of all its models to find their classes, once for itself and once for this package: the
    cache of what was found in a folder has 128 places, and there are 500 models. The second time is a sixth of a start
    (`create_import_structure_from_path`, https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/utils/
    import_utils.py). What was found in all of them came last and is still in the cache, under the folder as a `Path`.
    """
    finder: Any = import_module("transformers.utils.import_utils")
    find = getattr(finder, "create_import_structure_from_path", None)
    if find is None or not hasattr(find, "cache_info"):  # another release does it another way
        return
    found = find(folder)
    package = str(folder / "__init__.py")
    finder.create_import_structure_from_path = lambda path: found if str(path) == package else find(path)
    try:
        import_module("transformers.models")
    finally:
        finder.create_import_structure_from_path = find
