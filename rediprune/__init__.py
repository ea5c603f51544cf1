"""ReDiPrune engines: vision-language checkpoints in, fast engines with pruned visual tokens out.

>>> from rediprune import Pipeline
>>> Pipeline.load("engines/demo").generate("What is left of the red ball?", images=["a.png"], keep=0.15).text
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pkgutil import extend_path
from typing import TYPE_CHECKING

from .renamed import install as _install_old_names

# In a clone's own folder Python finds this one first, also where the package was installed as a copy: its rooms are there.
__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    # The folder is mapped beside this one (pyproject), where a checker that reads files does not look.
    from .runtime import Answer, GenerateOptions, Pipeline, RedipruneError, SelectOptions, Stream  # pyright: ignore[reportMissingImports]

try:
    __version__ = version("rediprune")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"

_install_old_names()

__all__ = ["Answer", "GenerateOptions", "Pipeline", "RedipruneError", "SelectOptions", "Stream", "__version__"]


def __getattr__(name: str) -> object:
    """Import on first use: `import rediprune` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".runtime", __name__), name)
